# Takes profiles as Pyroscope and Parca do, and says what has come: a line for each, and a file in FOLDER.
# Forms and JSON are read by Python's own libraries.
#
# usage: receiver.py FOLDER PORT STATUS
#        (PORT 0: any; STATUS 0: never answers; 202: takes it, and never ends its answer)
import base64
import email
import http.server
import json
import sys
import time
import urllib.parse

folder, port, status = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
received = 0


def profile_of(handler, body):
    url = urllib.parse.urlparse(handler.path)
    if url.path == "/ingest":
        query = urllib.parse.parse_qs(url.query)
        assert query["format"] == ["pprof"] and int(query["from"][0]) > 1_700_000_000, query
        head = b"Content-Type: " + handler.headers["Content-Type"].encode() + b"\r\n\r\n"
        parts = {part.get_param("name", header="Content-Disposition"): part.get_payload(decode=True)
                 for part in email.message_from_bytes(head + body).get_payload()}
        assert json.loads(parts["sample_type_config"])["inuse_space"]["units"] == "bytes"
        return "ingest", query["name"][0], parts["profile"]
    series, = json.loads(body)["series"]
    sample, = series["samples"]
    if url.path == "/push.v1.PusherService/Push":
        labels, kind = series["labels"], "pyroscope"
        assert len(sample["ID"]) == 36, sample["ID"]
    else:
        assert url.path == "/api/profiles/writeraw", url.path
        labels, kind = series["labels"]["labels"], "parca"
    labels = {label["name"]: label["value"] for label in labels}
    assert labels["__name__"] == "memory" and labels["instance"], labels
    return kind, labels["service_name"], base64.b64decode(sample["rawProfile"], validate=True)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        global received
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if status == 0:
            print("HANGS", flush=True)
            time.sleep(3600)
        if status in (200, 202):
            kind, name, profile = profile_of(self, body)
            received += 1
            with open(f"{folder}/{kind}-{received}.pb.gz", "wb") as file:
                file.write(profile)
            print("RECEIVED", kind, name, self.headers.get("Authorization", "-"), flush=True)
        else:
            print("REFUSED", flush=True)
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if status == 202:
            self.wfile.flush()
            time.sleep(3600)
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
print("PORT", server.server_address[1], flush=True)
server.serve_forever()
