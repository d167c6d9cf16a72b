"""Rules of the WS-I Basic Profile (1.1 by number, which 1.2 keeps), asserted of the live WSDL, its schema and the endpoint.

No checker of WS-I can be had any more; these are our own readings of the rules that can be asserted from outside. Rules on WSDL imports, headers
in bindings and rpc bindings are met by having none, which is asserted. Argument: the URL of the endpoint. Needs Python alone.
"""

import http.client
import io
import sys
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET

url = sys.argv[1]
WSDL, XSD = "{http://schemas.xmlsoap.org/wsdl/}", "{http://www.w3.org/2001/XMLSchema}"
SOAP11, SOAP12 = "{http://schemas.xmlsoap.org/wsdl/soap/}", "{http://schemas.xmlsoap.org/wsdl/soap12/}"
ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"
OURS = "urn:counterfoil:session:v1"
held = set()


def rule(number, holds, what=""):
    if not holds:
        raise SystemExit(f"{number} does not hold: {what}")
    held.add(number)


def check(holds, what):
    """What has no number, and the rules below rest on."""
    if not holds:
        raise SystemExit(f"does not hold: {what}")


def names(elements):
    return [element.get("name") for element in elements]


def local(qname):
    return qname.rpartition(":")[2]


def description(query):
    """The description as it is served, and what its prefixes stand for."""
    text = urllib.request.urlopen(f"{url}?{query}").read()
    prefixes = {}
    for _, (prefix, uri) in ET.iterparse(io.BytesIO(text), ["start-ns"]):
        check(prefixes.setdefault(prefix, uri) == uri, f"one meaning of the prefix {prefix}")
    return text, ET.fromstring(text), prefixes


def encoding(text):
    rule("R4003", not text.startswith(b"\xff") and b'encoding="UTF-8"' in text[:60], "UTF-8 or UTF-16")
    rule("R4004", text.startswith(b'<?xml version="1.0"'), "XML 1.0")


schema_text, schema, schema_prefixes = description("xsd=1")
encoding(schema_text)
rule("R2004", schema.tag == XSD + "schema", "an import is of a schema document")
rule("R2010", b'encoding="UTF-8"' in schema_text[:60])
rule("R2011", schema_text.startswith(b'<?xml version="1.0"'))
rule("R2105", schema.get("targetNamespace") == OURS, "every schema has a target namespace")
globals_ = names(schema.findall(XSD + "element"))
types = names(schema.findall(XSD + "complexType"))
for element in schema.iter():
    rule("R2800", element.tag.startswith(XSD), "XML Schema 1.0 only")
    rule("R2110", "soap/encoding" not in str(element.attrib), "no soapenc:Array")
    rule("R2111", not any("arrayType" in name for name in element.attrib), "no wsdl:arrayType")
    rule("R2112", not (element.get("name") or "").startswith("ArrayOf"), "no ArrayOf names")
    for attribute in ("type", "ref", "base"):
        if qname := element.get(attribute):
            prefix, _, name = qname.rpartition(":")
            rule("R2101", prefix in schema_prefixes, qname)
            rule("R2102", schema_prefixes[prefix] != OURS or name in types + globals_, f"{qname} is not defined")

for query, versions in (("wsdl&soap=1.1", [SOAP11]), ("wsdl", [SOAP11, SOAP12])):
    text, root, prefixes = description(query)
    encoding(text)
    check(root.tag == WSDL + "definitions" and root.get("targetNamespace") == OURS, "it is a WSDL 1.1 description of ours")
    order = [child.tag for child in root if child.tag != WSDL + "documentation"]
    rule("R2022", WSDL + "import" not in order, "no import to be out of place (also R2001, R2005, R2007, R2008)")
    rule("R2023", order[0] == WSDL + "types", "types before everything but documentation and imports")
    kinds = ["types", "message", "portType", "binding", "service"]
    check(all(child.tag[len(WSDL):] in kinds for child in root if child.tag != WSDL + "documentation"), "nothing but WSDL's own parts")
    for element in root.iter():
        rule("R2026", WSDL + "required" not in element.attrib, "no extension that must be understood")
        rule("R2401", element.tag.startswith((WSDL, XSD, *versions)), f"another binding extension: {element.tag}")
    # The schema: imported inside of a schema element, never by wsdl:import.
    embedded = root.findall(f"{WSDL}types/{XSD}schema")
    rule("R2003", len(list(root.iter(XSD + "import"))) == sum(len(one.findall(XSD + "import")) for one in embedded))
    rule("R2105", all(one.get("targetNamespace") or {child.tag for child in one} == {XSD + "import"} for one in embedded))
    imported = [one for one in root.iter(XSD + "import")]
    rule("R2002", all(one.get("schemaLocation") == f"{url}?xsd=1" for one in imported), "where the schema is")
    rule("R2114", {one.get("namespace") for one in imported} == {OURS}, "WSDL and schema may share a namespace, and do")

    messages = {message.get("name"): message for message in root.findall(WSDL + "message")}
    for name, message in messages.items():
        parts = message.findall(WSDL + "part")
        rule("R2210", len(parts) == 1, f"{name}: a message without parts in the binding has one part")
        for part in parts:
            rule("R2306", part.get("type") is None, f"{name}: not type and element")
            rule("R2204", part.get("element") is not None, f"{name}: document-literal parts are elements (also R2205)")
            prefix, _, element = part.get("element").rpartition(":")
            rule("R2206", prefixes[prefix] == OURS and element in globals_, f"{part.get('element')} is no global element")
    (port_type,) = root.findall(WSDL + "portType")
    operations = port_type.findall(WSDL + "operation")
    rule("R2304", len(set(names(operations))) == len(operations), "names of operations are unique")
    for operation in operations:
        shape = [child.tag[len(WSDL):] for child in operation if child.tag != WSDL + "documentation"]
        rule("R2303", shape[:2] == ["input", "output"] and set(shape[2:]) <= {"fault"}, "request and response only")
        rule("R2305", operation.get("parameterOrder") is None, "nothing that reorders parts (also R2302)")
        for child in operation:
            if child.tag != WSDL + "documentation":
                rule("R2101", local(child.get("message")) in messages, child.get("message"))

    bindings = root.findall(WSDL + "binding")
    check(len(bindings) == len(versions), "one binding for each version of SOAP")
    for binding, soap in zip(bindings, versions):
        rule("R2101", local(binding.get("type")) == port_type.get("name"))
        (protocol,) = binding.findall(soap + "binding")
        rule("R2701", protocol.get("transport") is not None)
        rule("R2702", protocol.get("transport") == "http://schemas.xmlsoap.org/soap/http")
        styles = {protocol.get("style")} | {one.get("style") for one in binding.iter(soap + "operation")}
        rule("R2705", styles <= {"document", None}, "one style")
        rule("R2718", names(binding.findall(WSDL + "operation")) == names(operations), "the operations of the portType, all")
        rule("R2710", len({part.get("element") for part in root.iter(WSDL + "part")}) == len(messages), "what is on the wire tells the operation")
        rule("R2719", not list(binding.iter(soap + "header")), "no headers (also R2720, R2749, R2751)")
        for operation, abstract in zip(binding.findall(WSDL + "operation"), operations):
            (action,) = operation.findall(soap + "operation")
            rule("R2745", action.get("soapAction") == f"{OURS}/{operation.get('name')}")
            bodies = list(operation.iter(soap + "body"))
            rule("R2201", len(bodies) == 2 and all(body.get("parts") is None for body in bodies), "one part at most")
            rule("R2706", all(body.get("use") == "literal" for body in bodies))
            rule("R2716", all(body.get("namespace") is None for body in bodies))
            faults = operation.findall(WSDL + "fault")
            rule("R2740", names(faults) == names(abstract.findall(WSDL + "fault")), "every known fault")
            for fault in faults:
                (detail,) = fault.findall(soap + "fault")
                rule("R2721", detail.get("name") is not None)
                rule("R2754", detail.get("name") == fault.get("name"))
                rule("R2723", detail.get("use") == "literal")
                rule("R2716", detail.get("namespace") is None)
    addresses = [one.get("location") for one in root.iter(SOAP11 + "address")]
    rule("R2711", addresses == [url], "no two SOAP 1.1 ports at one address")


# The endpoint. Without a credential each of these is a fault, which is what most rules are about.
target = urllib.parse.urlsplit(url)


def ask(body, method="POST", kind="text/xml; charset=utf-8", **headers):
    connection = http.client.HTTPConnection(target.netloc, timeout=10)
    connection.request(method, target.path, body.encode() if isinstance(body, str) else body, {"Content-Type": kind, **headers})
    answer = connection.getresponse()
    return answer, answer.read()


def envelope(header="", body=f"<GetSession xmlns='{OURS}'><sessionId>x</sessionId></GetSession>", namespace=ENVELOPE, after=""):
    return f"<s:Envelope xmlns:s='{namespace}'><s:Header>{header}</s:Header><s:Body>{body}</s:Body>{after}</s:Envelope>"


def fault(*arguments, **named):
    answer, text = ask(*arguments, **named)
    rule("R1126", answer.status == 500, f"{answer.status}: {text}")
    return ET.fromstring(text).find(f"{{{ENVELOPE}}}Body/{{{ENVELOPE}}}Fault"), answer, text


one, answer, text = fault(envelope())
rule("R1018", answer.headers["Content-Type"] == "text/xml; charset=utf-8", "charset and encoding agree")
rule("R1010", text.startswith(b'<?xml version="1.0" encoding="UTF-8"?>') and b"<?" not in text[5:], "a declaration, and no processing instruction (R1009)")
declared = fault('<?xml version="1.0" encoding="UTF-8"?>' + envelope())[0]
rule("R1010", local(declared.findtext("faultcode")) == "FailedAuthentication", "a declaration is taken")
rule("R1008", b"<!DOCTYPE" not in text)
rule("R1000", [child.tag for child in one] == ["faultcode", "faultstring"], "the four children of a fault, and in no namespace (R1001)")
rule("R1004", "." not in local(one.findtext("faultcode")), "a code of SOAP's or of another namespace, never dotted (R1031)")
rule("R1005", b"encodingStyle" not in text, "nowhere (also R1006, R1007)")
rule("R1011", [child.tag for child in ET.fromstring(text)][-1] == f"{{{ENVELOPE}}}Body")
rule("R1014", all(child.tag.startswith("{") for child in ET.fromstring(text).find(f"{{{ENVELOPE}}}Body")))
unknown = "<x:y xmlns:x='urn:x' s:mustUnderstand='1'/>"
rule("R1025", local(fault(envelope(unknown))[0].findtext("faultcode")) == "MustUnderstand", "before anything else (also R1027)")
other = fault(envelope(namespace="urn:no:soap"))[0]
rule("R1015", local(other.findtext("faultcode")) == "VersionMismatch")
rule("R1011", local(fault(envelope(after="<x/>"))[0].findtext("faultcode")) == "Client", "nothing after the Body is taken")
rule("R4001", local(fault(b"\xef\xbb\xbf" + envelope().encode())[0].findtext("faultcode")) == "FailedAuthentication", "a byte order mark")
utf16 = fault(envelope().encode("utf-16"), kind="text/xml; charset=utf-16")[0]
rule("R1012", local(utf16.findtext("faultcode")) == "FailedAuthentication", "UTF-16")
for action in ('"urn:counterfoil:session:v1/GetSession"', '""', "unquoted", None):
    headers = {} if action is None else {"SOAPAction": action}
    code = local(fault(envelope(), **headers)[0].findtext("faultcode"))
    rule("R1119", code == "FailedAuthentication", f"SOAPAction {action} decides nothing (also R1109, R2744)")
rule("R1132", ask(envelope(), method="PUT")[0].status == 405, "POST only (also R1114)")
rule("R1115", ask(envelope(), kind="application/json")[0].status == 415)
rule("R1124", urllib.request.urlopen(f"{url}?wsdl").status == 200)
print(f"{len(held)} rules hold: {' '.join(sorted(held))}")
