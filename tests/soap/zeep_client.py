"""The scenario of `run`, with zeep reading the live WSDL. Arguments: URL, secret, SOAP version, and text, digest or signed; then the
keys and certificates are in the folder $SOAP_KEYS.
"""

import datetime
import os
import sys

from zeep import Client, Settings
from zeep.exceptions import Fault
from zeep.wsse.username import UsernameToken
from zeep.wsse.utils import WSU, get_security_header

url, secret, version, auth = sys.argv[1:5]
count = 0


def check(holds, what):
    global count
    count += 1
    if not holds:
        raise SystemExit(f"does not hold: {what}")


def signed(name):
    """zeep's own plugin, with what it leaves out: a time stamp, an algorithm of this century, and answers that are not signed."""
    import xmlsec
    from zeep.wsse.signature import BinarySignature

    class Signed(BinarySignature):
        def apply(self, envelope, headers):
            now = datetime.datetime.now(datetime.timezone.utc)
            times = [WSU.Created(now.isoformat()), WSU.Expires((now + datetime.timedelta(minutes=5)).isoformat())]
            get_security_header(envelope).append(WSU.Timestamp(*times))
            return super().apply(envelope, headers)

        def verify(self, envelope):
            return envelope

    keys = os.environ["SOAP_KEYS"]
    method = xmlsec.Transform.ECDSA_SHA256 if name == "audit" else xmlsec.Transform.RSA_SHA256
    return Signed(f"{keys}/{name}.key", f"{keys}/{name}.crt", None, method, xmlsec.Transform.SHA256)


def proxy(name, password):
    wrong = password != secret
    client = Client(
        f"{url}?wsdl",
        wsse=signed("stranger" if wrong else name) if auth == "signed" else UsernameToken(name, password, use_digest=auth == "digest"),
        settings=Settings(strict=True),
    )
    return client, client.bind("SessionService", "SessionPortSoap11" if version == "1.1" else "SessionPortSoap12")


def fault_of(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except Fault as fault:
        return fault
    raise SystemExit(f"no fault from {call}")


def code_of(fault):
    detail = fault.detail.find("{urn:counterfoil:session:v1}SessionFault")
    return detail.findtext("{urn:counterfoil:session:v1}code"), detail


client, service = proxy("billing", secret)
_, auditor = proxy("audit", secret)
odd = "<a & b>\n\ttwo ü € 🧀"
created = service.CreateSession(
    subject=f"zeep-{version}-{auth}",
    kind="web",
    clientAddress="192.0.2.7",
    attributeMap={"entry": [{"key": "odd", "value": odd}, {"key": "n", "json": "5"}]},
)
session, token = created.session, created.token
check(session.version == 1 and session.state == "active" and session.kind == "web", "create")
check(session.clientAddress == "192.0.2.7", "address")
check(created.receipt.leafIndex >= 0 and len(created.receipt.leafHash) == 64, "receipt")
attributes = {entry.key: entry.value or entry.json for entry in session.attributeMap.entry}
check(attributes == {"odd": odd, "n": "5"}, f"attributes come back as they went: {attributes}")
valid = service.ValidateSession(token=token)
check(valid.valid is True and valid.session.sessionId == session.sessionId, "validate")
check(service.ValidateSession(token="cfs_no").reason == "unknown", "an unknown token")
check(service.GetSession(session.sessionId).subject == session.subject, "get")
check(service.TouchSession(session.sessionId).idleExpiresAt >= session.idleExpiresAt, "touch")
updated = service.UpdateSession(
    sessionId=session.sessionId,
    expectedVersion=1,
    attributeMap={"entry": [{"key": "b", "json": '{"c": [1, true]}'}]},
    removeKeys={"key": ["n"]},
)
check({entry.key for entry in updated.session.attributeMap.entry} == {"odd", "b"}, "update")
code, detail = code_of(fault_of(service.UpdateSession, sessionId=session.sessionId, expectedVersion=1))
check(code == "VERSION_CONFLICT" and detail.findtext("{*}currentVersion") == "2", "a stale version")
bound = service.AuthenticateSession(session.sessionId, session.subject, {"method": ["pwd", "otp"]}, "aal2")
check(bound.token != token and service.ValidateSession(token).reason == "rotated", "authenticate rotates")
renewed = service.RenewSession(session.sessionId)
check(service.ValidateSession(renewed.token).valid, "renew")
check(service.ListSessions(subject=session.subject).sessions.session[0].sessionId == session.sessionId, "list")
check("c2sp.org" in service.GetReceipt(renewed.receipt.leafIndex), "receipt text")
check(code_of(fault_of(service.QueryAudit))[0] == "NOT_ALLOWED", "an application does not read the log")
events = auditor.QueryAudit(sessionId=session.sessionId).events.event
check([event.version for event in events] == [4, 3, 2, 1] and events[0].protocol == "soap", "the log has it all")
ended = service.TerminateSession(session.sessionId, "logout")
again = service.TerminateSession(session.sessionId, "logout")
check(ended.session.endReason == "logout" and again.receipt.leafIndex == ended.receipt.leafIndex, "terminate twice")
check(service.GetSession(session.sessionId).state == "ended", "get after the end")
check(code_of(fault_of(service.TouchSession, session.sessionId))[0] == "SESSION_ENDED", "touch after the end")
unknown = "0190a5c2-7c1e-7000-8000-00000000000a"
check(code_of(fault_of(service.GetSession, unknown))[0] == "SESSION_NOT_FOUND", "unknown")
check(code_of(fault_of(service.CreateSession, kind="no"))[0] == "VALIDATION_FAILED", "a bad kind")
for _ in range(2):
    service.CreateSession(subject=session.subject)
check(service.TerminateSubjectSessions(session.subject) == 2, "log out everywhere")
_, stranger = proxy("billing", "not the secret, but as long")
refused = fault_of(stranger.GetSession, session.sessionId)
said = refused.code + "".join(map(str, refused.subcodes or []))
check("FailedAuthentication" in said, f"a wrong secret: {said}")
print(f"{count} checks hold")
