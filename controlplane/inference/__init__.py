"""Models: where they are served, and calls to them.

values.py         what the parts say to each other: replicas, calls, answers
spec.py, deployment.py, deployments.py, deployment_endpoints.py      what is to serve which model, declared
reconciler.py, placing.py                                            made so, on nodes
gateway/          calls: OpenAI's routes and the verbs of workflows
usage_endpoints.py   tokens by principal, run and model
"""
