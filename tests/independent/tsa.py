"""A time-stamping authority: `openssl ts -reply` behind HTTP (RFC 3161 section 3.4), with a root of its own in FOLDER."""
import http.server
import os
import subprocess
import sys

folder = sys.argv[1]
os.makedirs(folder)
os.chdir(folder)


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


with open("ts.cnf", "w") as file:
    file.write(
        "[tsa]\ndefault_tsa=t\n[t]\nserial=serial\nsigner_cert=tsa.pem\nsigner_key=tsa.key\nsigner_digest=sha256\n"
        "default_policy=1.2.3.4.1\ndigests=sha256\nclock_precision_digits=3\ness_cert_id_alg=sha256\n"
    )
with open("serial", "w") as file:
    file.write("01\n")
with open("ext", "w") as file:
    file.write("extendedKeyUsage=critical,timeStamping\n")
key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
openssl("req", "-x509", "-subj", "/CN=stamp root", "-days", "30", "-keyout", "root.key", "-out", "root.pem", *key)
openssl("req", "-subj", "/CN=stamps", "-keyout", "tsa.key", "-out", "tsa.csr", *key)
openssl("x509", "-req", "-in", "tsa.csr", "-CA", "root.pem", "-CAkey", "root.key", "-days", "20", "-extfile", "ext", "-out", "tsa.pem")


class Authority(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        if self.headers["Content-Type"] != "application/timestamp-query":
            return self.send_error(415)
        with open("query", "wb") as file:
            file.write(self.rfile.read(int(self.headers["Content-Length"])))
        openssl("ts", "-reply", "-config", "ts.cnf", "-queryfile", "query", "-out", "answer")
        with open("answer", "rb") as file:
            answer = file.read()
        self.send_response(200)
        self.send_header("Content-Type", "application/timestamp-reply")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


server = http.server.HTTPServer(("127.0.0.1", 0), Authority)
print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
