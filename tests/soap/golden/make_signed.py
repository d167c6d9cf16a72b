"""Writes libs/api-soap/src/testdata/signed/: messages signed by xmlsec (libxmlsec1), most of them by zeep's own plugin, good and bad ones.

Run by hand (pip install zeep xmlsec cryptography) when one is to be added. Keys are made anew and thrown away; what the tests
know of a certificate is its digest, in certificates.json.
"""

import base64
import datetime
import hashlib
import json
import pathlib
import sys

import xmlsec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from lxml import etree
from zeep.wsse import signature as zeep

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
SOAP11 = "http://schemas.xmlsoap.org/soap/envelope/"
SOAP12 = "http://www.w3.org/2003/05/soap-envelope"
WSS = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-"
WSSE, WSU = WSS + "wssecurity-secext-1.0.xsd", WSS + "wssecurity-utility-1.0.xsd"
DS = "http://www.w3.org/2000/09/xmldsig#"
WSA = "http://www.w3.org/2005/08/addressing"
X509V3 = WSS + "x509-token-profile-1.0#X509v3"
BASE64 = WSS + "soap-message-security-1.0#Base64Binary"
T = xmlsec.Transform


class Identity:
    def __init__(self, key, begin=2026, end=2046):
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "consumer")])
        certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
            .not_valid_before(datetime.datetime(begin, 1, 1)).not_valid_after(datetime.datetime(end, 1, 1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False).sign(key, hashes.SHA256())
        )
        self.raw = key
        self.der = certificate.public_bytes(serialization.Encoding.DER)
        self.cert = certificate.public_bytes(serialization.Encoding.PEM)
        self.pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def key(self):
        return zeep._make_sign_key(self.pem, self.cert, None)


known = Identity(rsa.generate_private_key(65537, 2048))
curve = Identity(ec.generate_private_key(ec.SECP256R1()))
expired = Identity(rsa.generate_private_key(65537, 2048), 2020, 2021)


def envelope(soap=SOAP11, headers="", timestamp=True):
    stamp = "<u:Timestamp><u:Created>2026-11-21T12:00:00Z</u:Created><u:Expires>2026-11-21T12:05:00Z</u:Expires></u:Timestamp>"
    return etree.fromstring(
        f"<s:Envelope xmlns:s='{soap}' xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance' xmlns:unused='urn:unused'><s:Header>"
        f"{headers}<w:Security xmlns:w='{WSSE}' xmlns:u='{WSU}' s:mustUnderstand='1'>{stamp if timestamp else ''}</w:Security></s:Header>"
        "<s:Body><CreateSession xmlns='urn:counterfoil:session:v1' xmlns:c='urn:counterfoil:session:v1'><c:subject>alice &amp; \"bob\"\r\n</c:subject>"
        "<kind   xsi:type = 'c:kind'>web</kind><!-- none --></CreateSession></s:Body></s:Envelope>"
    )


def save(name, tree):
    (out / f"{name}.xml").write_bytes(etree.tostring(tree, xml_declaration=True, encoding="UTF-8"))


def binary(name, identity, method, digest, soap=SOAP11, **how):
    tree = envelope(soap, **how)
    zeep._sign_envelope_with_key_binary(tree, identity.key(), method, digest)
    save(name, tree)


binary("zeep-rsa", known, T.RSA_SHA256, T.SHA256)
binary("zeep-ecdsa", curve, T.ECDSA_SHA256, T.SHA512, SOAP12)
binary("zeep-sha1", known, None, None)
binary("zeep-sha1-digest", known, T.RSA_SHA256, T.SHA1)
binary("expired", expired, T.RSA_SHA256, T.SHA256)
tree = envelope(SOAP12)
zeep._sign_envelope_with_key(tree, known.key(), T.RSA_SHA256, T.SHA256)
save("zeep-x509data", tree)


def own(name, parts, method=T.RSA_SHA256, key=None, transform=T.EXCL_C14N, c14n=T.EXCL_C14N, prefixes=None, key_info="identifier", soap=SOAP11, **how):
    """Signs with a template of our own: the parts are XPaths."""
    tree = envelope(soap, **how)
    spaces = {"s": soap, "w": WSSE, "u": WSU, "a": WSA, "d": DS}
    security = tree.find(".//{%s}Security" % WSSE)
    if key_info == "token":
        token = etree.SubElement(security, "{%s}BinarySecurityToken" % WSSE, ValueType=X509V3, EncodingType=BASE64)
        token.text = base64.b64encode(known.der).decode()
        token.set("{%s}Id" % WSU, "token")
    signature = xmlsec.template.create(tree, c14n, method, ns="d")
    security.append(signature)
    context = xmlsec.SignatureContext()
    for at, path in enumerate(parts):
        part = tree.xpath(path, namespaces=spaces)[0]
        if part.get("{%s}Id" % WSU) is None:
            part.set("{%s}Id" % WSU, f"part-{at}")
        context.register_id(part, "Id", WSU)
        reference = xmlsec.template.add_reference(signature, T.SHA256, uri="#" + part.get("{%s}Id" % WSU))
        transforms = xmlsec.template.add_transform(reference, transform)
        if prefixes is not None:
            etree.SubElement(transforms, "{%s}InclusiveNamespaces" % "http://www.w3.org/2001/10/xml-exc-c14n#", PrefixList=prefixes)
    if prefixes is not None:
        etree.SubElement(signature.find(".//{%s}CanonicalizationMethod" % DS), "{%s}InclusiveNamespaces" % "http://www.w3.org/2001/10/xml-exc-c14n#", PrefixList=prefixes)
    context.key = key or known.key()
    context.sign(signature)
    info = etree.SubElement(etree.SubElement(signature, "{%s}KeyInfo" % DS), "{%s}SecurityTokenReference" % WSSE)
    if key_info == "token":
        etree.SubElement(info, "{%s}Reference" % WSSE, URI="#token", ValueType=X509V3)
    elif key_info == "serial":
        serial = etree.SubElement(etree.SubElement(info, "{%s}X509Data" % DS), "{%s}X509IssuerSerial" % DS)
        etree.SubElement(serial, "{%s}X509IssuerName" % DS).text = "CN=consumer"
        etree.SubElement(serial, "{%s}X509SerialNumber" % DS).text = "7"
    elif key_info == "key":
        held = etree.SubElement(info, "{%s}KeyIdentifier" % WSSE, ValueType=X509V3.replace("X509v3", "X509SubjectKeyIdentifier"))
        held.text = base64.b64encode(x509.SubjectKeyIdentifier.from_public_key(known.raw.public_key()).digest).decode()
    else:
        held = etree.SubElement(info, "{%s}KeyIdentifier" % WSSE, ValueType=X509V3, EncodingType=BASE64)
        held.text = base64.encodebytes(known.der).decode()
    save(name, tree)
    return tree


BODY, STAMP = "//s:Body", "//u:Timestamp"
addressed = f"<a:MessageID xmlns:a='{WSA}'>urn:uuid:0190a5c2-7c1e-7000-8000-00000000000a</a:MessageID><a:Action xmlns:a='{WSA}'>urn:x</a:Action>"
own("all-parts", [BODY, STAMP, "//w:BinarySecurityToken", "//a:MessageID", "//a:Action"], prefixes="#default c s xsi unused", key_info="token",
    soap=SOAP12, headers=addressed)
own("identifier", [BODY, STAMP])
own("by-serial", [BODY, STAMP], key_info="serial")
own("by-key", [BODY, STAMP], key_info="key", soap=SOAP12)
own("unsigned-timestamp", [BODY])
own("unsigned-body", [STAMP])
own("no-timestamp", [BODY], timestamp=False)
own("unsigned-message-id", [BODY, STAMP], headers=addressed)
own("child-of-body", ["//s:Body/*", STAMP])
own("whole-envelope", ["/s:Envelope", STAMP, BODY], transform=T.ENVELOPED)
own("inclusive-part", [BODY, STAMP], transform=T.C14N)
own("inclusive-info", [BODY, STAMP], c14n=T.C14N)
own("comments", [BODY, STAMP], transform=T.EXCL_C14N_COMMENTS)
own("too-many", [BODY, STAMP] + [f"//x{i}" for i in range(7)], headers="".join(f"<x{i}/>" for i in range(7)))
# The public key as the secret of an HMAC, which whoever mixes up algorithms would find good.
hmac = xmlsec.Key.from_binary_data(xmlsec.KeyData.HMAC, known.public)
own("hmac", [BODY, STAMP], method=T.HMAC_SHA256, key=hmac)

# No references at all: a good signature of nothing.
tree = own("empty", [BODY, STAMP])
info = tree.find(".//{%s}SignedInfo" % DS)
for reference in info.findall("{%s}Reference" % DS):
    info.remove(reference)
canonical = etree.tostring(etree.fromstring(etree.tostring(info, method="c14n", exclusive=True)), method="c14n", exclusive=True)
value = known.raw.sign(canonical, padding.PKCS1v15(), hashes.SHA256())
tree.find(".//{%s}SignatureValue" % DS).text = base64.b64encode(value).decode()
save("empty", tree)

(out / "rsa.pem").write_bytes(known.cert)
digest = lambda identity: hashlib.sha256(identity.der).hexdigest()
(out / "certificates.json").write_text(json.dumps({"rsa": digest(known), "ec": digest(curve), "expired": digest(expired)}, indent=1) + "\n")
