"""What a node serves to those who reach it: model servers, behind stream tokens.

tokens.py    who may open what, for how long: signed by the control plane, checked here
app.py       the local HTTP application
reach.py     how it is reached: the tunnel this node dials, and a port of its own where it listens
"""
