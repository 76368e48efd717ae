"""A server of buckets for tests/s3.rs: moto's, which checks signatures with botocore and rights with IAM's policies.

It prints one line of JSON when it is ready, then obeys one command a line of standard input, answering each with `done`;
words are apart by tabs: `put KEY FILE`, `publish KEY FILE` for what everybody may read, `check on` and `check off`, since
with its checks it knows no requests without a signature. It ends with its standard input.
"""

import json
import sys

import boto3
import requests
from moto.server import ThreadedMotoServer

BUCKET = "models"

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
endpoint = f"http://{host}:{port}"


def client(service, key=("testing", "testing")):
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=key[0],
        aws_secret_access_key=key[1],
    )


def user(iam, name, actions, resource):
    """A user who may do this, and the key of that user."""
    iam.create_user(UserName=name)
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": resource}]}
    iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


iam = client("iam")
keys = {
    "reader": user(iam, "reader", ["s3:GetObject"], f"arn:aws:s3:::{BUCKET}/*"),
    "stranger": user(iam, "stranger", ["s3:GetObject"], "arn:aws:s3:::other/*"),
    "writer": user(iam, "writer", ["s3:*"], "*"),
}
storage = client("s3", keys["writer"])
storage.create_bucket(Bucket=BUCKET)
print(json.dumps({"endpoint": endpoint, "keys": keys}), flush=True)

for line in sys.stdin:
    match line.rstrip("\n").split("\t"):
        case ["put" | "publish" as verb, key, path]:
            acl = "public-read" if verb == "publish" else "private"
            with open(path, "rb") as body:
                storage.put_object(Bucket=BUCKET, Key=key, Body=body, ACL=acl)
        case ["check", state]:
            data = "0" if state == "on" else "inf"
            requests.post(f"{endpoint}/moto-api/reset-auth", data=data, timeout=10).raise_for_status()
        case other:
            sys.exit(f"unknown command {other}")
    print("done", flush=True)
server.stop()
