"""A server of buckets for tests/s3.rs: moto's, which checks rights with IAM's policies, behind a check of signatures.

Moto knows signatures in headers alone, so those in addresses are checked here, by what botocore computes, and moto gets
the request signed in its headers: by the same key, or by a wrong secret where the signature was wrong.

It prints one line of JSON when it is ready, then obeys one command a line of standard input, answering each with `done`;
words are apart by tabs: `put KEY FILE`, `publish KEY FILE` for what everybody may read, `check on` and `check off`, since
with its checks it knows no requests without a signature. It ends with its standard input.
"""

import datetime
import hmac
import json
import sys
import threading
import urllib.parse

import boto3
import requests
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "models"
moto = DomainDispatcherApplication(create_backend_app)
# Secret and session token of each key.
secrets = {}


def signature(request, query, secret):
    """What the signature of an address should be."""
    key, _, region, service, _ = query["X-Amz-Credential"].split("/")
    auth = S3SigV4QueryAuth(Credentials(key, secret), service, region)
    request.params = query
    request.context["timestamp"] = query["X-Amz-Date"]
    return auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)


def is_late(query):
    signed = datetime.datetime.strptime(query["X-Amz-Date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
    age = (datetime.datetime.now(datetime.timezone.utc) - signed).total_seconds()
    return not -1 <= age < int(query["X-Amz-Expires"])


def app(environ, start_response):
    query = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"]))
    given = query.pop("X-Amz-Signature", None)
    if given is None:
        return moto(environ, start_response)
    if is_late(query):
        start_response("403 Forbidden", [("content-type", "application/xml")])
        return [b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"]
    path, method = environ["RAW_URI"].split("?")[0], environ["REQUEST_METHOD"]
    url = f"http://{environ['HTTP_HOST']}{path}"
    key, region = query["X-Amz-Credential"].split("/")[::2][:2]
    secret = secrets.get(key, "unknown")
    if not hmac.compare_digest(given, signature(AWSRequest(method=method, url=url), query, secret)):
        secret = "wrong"
    token = query.get("X-Amz-Security-Token")
    request = AWSRequest(method=method, url=url, headers={"Host": environ["HTTP_HOST"]})
    S3SigV4Auth(Credentials(key, secret, token), "s3", region).add_auth(request)
    for name, value in request.headers.items():
        environ["HTTP_" + name.upper().replace("-", "_")] = value
    return moto(environ | {"QUERY_STRING": "", "RAW_URI": path, "REQUEST_URI": path}, start_response)


server = make_server("127.0.0.1", 0, app, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
endpoint = f"http://127.0.0.1:{server.server_port}"


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
    secrets[key["AccessKeyId"]] = key["SecretAccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def session(iam, actions, resource):
    """A session of a role that may do this: its key and its token."""
    anyone = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]}
    role = iam.create_role(RoleName="engine", AssumeRolePolicyDocument=json.dumps(anyone))["Role"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": resource}]}
    iam.put_role_policy(RoleName="engine", PolicyName="only", PolicyDocument=json.dumps(policy))
    key = client("sts").assume_role(RoleArn=role["Arn"], RoleSessionName="test")["Credentials"]
    secrets[key["AccessKeyId"]] = key["SecretAccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"], key["SessionToken"]


iam = client("iam")
keys = {
    "reader": user(iam, "reader", ["s3:GetObject"], f"arn:aws:s3:::{BUCKET}/*"),
    "stranger": user(iam, "stranger", ["s3:GetObject"], "arn:aws:s3:::other/*"),
    "writer": user(iam, "writer", ["s3:*"], "*"),
    "session": session(iam, ["s3:GetObject"], f"arn:aws:s3:::{BUCKET}/*"),
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
server.shutdown()
