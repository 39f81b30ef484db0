"""Receives webhooks and verifies their signature: `WEBHOOK_SECRET=whsec_… python receive_webhook.py 8080`."""

import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from standardwebhooks import Webhook, WebhookVerificationError  # pip install standardwebhooks

webhook = Webhook(os.environ["WEBHOOK_SECRET"])


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            job = webhook.verify(body.decode(), {name.lower(): value for name, value in self.headers.items()})
        except WebhookVerificationError as error:
            print(f"refused: {error}", flush=True)
            self.send_response(401)
        else:
            # The same webhook-id comes again when an attempt is repeated: act on each id once.
            print(self.headers["webhook-id"], job["id"], job["status"], *job.get("output", []), flush=True)
            self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass


HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
