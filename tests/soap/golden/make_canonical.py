"""Writes libs/api-soap/src/testdata/canonical.json: random documents, and the exclusive canonical form libxml2 makes of a part of each.

Run by hand on a machine with libxml2.so.2 when cases are to be added; the same seed makes the same file. libxml2 is called as xmlsec calls
it, with the set of nodes to write: wrappers that copy a part of a document first lose what its ancestors declare.
"""

import ctypes
import json
import random
import sys

random.seed(20261121)
URIS = ["urn:a", "urn:b", "http://example.com/c?d=1", "urn:d"]
PREFIXES = ["", "p", "q", "r", "wsu"]
TEXTS = [
    "x", " ", "\n\t", "a&amp;b", "&lt;i&gt;", "]]&gt;", "&#13;\r\nx\ry", "&#x9;&#10;", "<![CDATA[<&>\r\n\r]]>", "ü€🧀", "<!-- c -->", "\"'",
    "&quot;&apos;",
]
VALUES = ["", "1", " a  b ", "&#9;&#10;&#13;", "\t\r\n x\n", "&amp;&lt;>", "it's", "ü🧀", "&quot;"]


def element(depth, scope, apex):
    """One element, as text. `scope` says what each prefix stands for."""
    scope = dict(scope)
    declared = {}
    for prefix in random.sample(PREFIXES, random.randint(0, 3)):
        declared[prefix] = random.choice(URIS + ([""] if prefix == "" else []))
    scope.update(declared)
    known = [prefix for prefix in scope if prefix]
    prefix = random.choice(known + [""])
    name = ("" if not prefix else prefix + ":") + ("apex" if apex else random.choice("efg"))
    attributes = [f'xmlns{":" if p else ""}{p}="{uri}"' for p, uri in declared.items()]
    taken = set()
    for _ in range(random.randint(0, 4)):
        prefix = random.choice(known + ["", "xml"])
        local = random.choice(["lang", "space"]) if prefix == "xml" else random.choice(["Id", "a", "b", "c", "ä"])
        key = ("xml" if prefix == "xml" else scope[prefix] if prefix else "", local)
        if key in taken:
            continue
        taken.add(key)
        value = {"lang": "en", "space": "preserve"}.get(local) or random.choice(VALUES)
        quote = "'" if '"' in value or ("'" not in value and random.random() < 0.5) else '"'
        attributes.append(f'{prefix}{":" if prefix else ""}{local}={quote}{value}{quote}')
    random.shuffle(attributes)
    inside = ""
    for _ in range(random.randint(0, 3) if depth else 0):
        inside += random.choice(TEXTS) if random.random() < 0.4 else element(depth - 1, scope, False)
    blanks = random.choice([" ", "\n  ", "\t"])
    start = f"<{name}" + "".join(blanks + attribute for attribute in attributes) + random.choice(["", " ", "\n"])
    return f"{start}/>" if not inside and random.random() < 0.5 else f"{start}>{inside}</{name}{random.choice(['', ' '])}>"


def document():
    outer, scopes, close = "", {"": ""}, ""
    for level in range(random.randint(1, 4)):
        declared = {p: random.choice(URIS) for p in random.sample(PREFIXES, random.randint(0, 3))}
        scopes.update(declared)
        outer += f"<o{level}" + "".join(f' xmlns{":" if p else ""}{p}="{u}"' for p, u in declared.items()) + ">"
        close = f"</o{level}>" + close
    return outer + element(random.randint(0, 4), scopes, True) + close


xml2 = ctypes.CDLL("libxml2.so.2")
for name in ["xmlReadMemory", "xmlXPathNewContext", "xmlXPathEvalExpression"]:
    getattr(xml2, name).restype = ctypes.c_void_p
xml2.xmlXPathEvalExpression.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
xml2.xmlXPathNewContext.argtypes = [ctypes.c_void_p]
EXCLUSIVE = 1
APEX = "//*[local-name()='apex']/descendant-or-self::node()"


class XPathObject(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("nodes", ctypes.c_void_p)]


def exclusive(xml, prefixes):
    """The exclusive canonical form of the apex; None if libxml2 does not read the document without a word."""
    bytes_ = xml.encode()
    document = xml2.xmlReadMemory(bytes_, len(bytes_), None, b"UTF-8", 0x60)
    if not document:
        return None
    context = xml2.xmlXPathNewContext(document)
    found = xml2.xmlXPathEvalExpression(f"{APEX} | {APEX}/@* | {APEX}/namespace::*".encode(), context)
    nodes = ctypes.cast(found, ctypes.POINTER(XPathObject)).contents.nodes
    listed = (ctypes.c_char_p * (len(prefixes) + 1))(*[prefix.encode() for prefix in prefixes], None)
    out = ctypes.c_char_p()
    size = xml2.xmlC14NDocDumpMemory(ctypes.c_void_p(document), ctypes.c_void_p(nodes), EXCLUSIVE, listed, 0, ctypes.byref(out))
    return ctypes.string_at(out, size).decode() if size > 0 else None


cases = []
while len(cases) < 400:
    xml = document()
    listed = random.sample(["#default", "p", "q", "r", "nowhere"], random.randint(1, 3)) if random.random() < 0.5 else []
    canonical = exclusive(xml, listed)
    assert canonical, xml
    cases.append({"xml": xml, "prefixes": [p.replace("#default", "") for p in listed], "canonical": canonical})
json.dump(cases, open(sys.argv[1], "w"), ensure_ascii=False, indent=0)
