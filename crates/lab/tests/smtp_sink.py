"""A mail server for tests, with the TLS of the certificate and the key that are its first two arguments.

Usage: smtp_sink.py CERTIFICATE KEY starttls|tls

Prints its port, then each mail as a line of JSON. The only user is ann; her password is the variable SINK_PASSWORD. A wrong
password is repeated in the answer, as no server should do.
"""

import asyncio
import json
import os
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult


class Sink:
    async def handle_DATA(self, server, session, envelope):
        mail = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "content": envelope.content.decode(),
            "starttls": session.ssl is not None,
            "authenticated": session.authenticated,
        }
        print(json.dumps(mail), flush=True)
        return "250 kept"


def authenticate(server, session, envelope, mechanism, data):
    password = data.password.decode()
    if data.login == b"ann" and password == os.environ["SINK_PASSWORD"]:
        return AuthResult(success=True)
    return AuthResult(success=False, handled=False, message=f"535 5.7.8 the password {password} is wrong")


async def serve(certificate, key, security):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    is_starttls = security == "starttls"

    def session():
        return SMTP(
            Sink(),
            tls_context=context if is_starttls else None,
            require_starttls=is_starttls,
            authenticator=authenticate,
            auth_required=True,
            auth_require_tls=is_starttls,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(session, "127.0.0.1", 0, ssl=None if is_starttls else context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(serve(*sys.argv[1:]))
