"""The services of the contenders, each as its own documentation writes one.

They run in the contenders' environments (bench/serve/peers.sh), share one job (pipeline.py) and
take the name of the case from the environment variable CASE.
"""
