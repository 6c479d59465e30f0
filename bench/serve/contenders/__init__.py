"""One file per server.

LABEL, NOTE     for the tables
RULE            "ap" where the precision is another than the reference's; default "agreement"
HOLD            False if its processes cannot bear to be stopped between rounds
launch(case, port, folder) -> Launch
request(case, jpeg) -> bytes            the whole HTTP request for one picture
read(body) -> boxes, scores, classes    of one answer
versions() -> dict                      what it runs with
"""
