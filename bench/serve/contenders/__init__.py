"""One file per server.

LABEL, NOTE     for the tables
HOLD            False if its processes cannot bear to be stopped between rounds
launch(case, port, folder) -> Launch
request(case, jpeg) -> bytes            the whole HTTP request for one picture
read(body) -> boxes, scores, classes    of one answer
versions() -> dict                      what it runs with
"""
