//! The description: WSDL 1.1, document/literal-wrapped, and its schema. Written from the table of operations, so that it cannot
//! name one that is not there.

use crate::NAMESPACE;
use crate::operation::Operation;
use crate::writer::Xml;

/// Which ports a WSDL has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Soap {
    /// SOAP 1.1 and 1.2.
    Both,
    /// SOAP 1.1 only: Axis 1.4 and its like fail on a binding for 1.2.
    Only11,
}

/// Where a WSDL says that its schema is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaLocation<'a> {
    /// In the file `counterfoil.xsd` beside it.
    Beside,
    /// At the endpoint of this URL.
    Endpoint(&'a str),
}

/// The schema.
pub fn xsd() -> &'static str {
    include_str!("session.xsd")
}

/// A port: its binding, the namespace of its WSDL elements, and its prefix.
const PORTS: [(&str, &str, &str); 2] = [
    ("Soap11", "http://schemas.xmlsoap.org/wsdl/soap/", "soap"),
    ("Soap12", "http://schemas.xmlsoap.org/wsdl/soap12/", "soap12"),
];

/// The WSDL of the service at this URL.
pub fn wsdl(soap: Soap, schema: SchemaLocation<'_>, location: &str) -> String {
    let ports = PORTS.iter().take(match soap {
        Soap::Both => 2,
        Soap::Only11 => 1,
    });
    let mut xml = Xml::with_capacity(32_768);
    xml.raw("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<wsdl:definitions name=\"SessionService\" targetNamespace=\"");
    xml.raw(NAMESPACE).raw("\"\n    xmlns:wsdl=\"http://schemas.xmlsoap.org/wsdl/\"");
    xml.raw("\n    xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\"\n    xmlns:tns=\"").raw(NAMESPACE).raw("\"");
    for (_, namespace, prefix) in ports.clone() {
        xml.raw("\n    xmlns:").raw(prefix).raw("=\"").raw(namespace).raw("\"");
    }
    xml.raw(">\n  <wsdl:documentation>Audited sessions: every change is an entry of an append-only, signed log before it is ");
    xml.raw("acknowledged.</wsdl:documentation>\n  <wsdl:types>\n    <xsd:schema>\n      <xsd:import namespace=\"");
    xml.raw(NAMESPACE).raw("\" schemaLocation=\"");
    match schema {
        SchemaLocation::Beside => xml.raw("counterfoil.xsd"),
        SchemaLocation::Endpoint(url) => xml.escaped(url).raw("?xsd=1"),
    };
    xml.raw("\"/>\n    </xsd:schema>\n  </wsdl:types>\n");
    let message = |xml: &mut Xml, name: &str, part: &str, element: &str| {
        xml.raw("  <wsdl:message name=\"").raw(name).raw("\">\n    <wsdl:part name=\"").raw(part);
        xml.raw("\" element=\"tns:").raw(element).raw("\"/>\n  </wsdl:message>\n");
    };
    for operation in Operation::ALL {
        let name = operation.name();
        message(&mut xml, name, "parameters", name);
        message(&mut xml, &format!("{name}Response"), "parameters", &format!("{name}Response"));
    }
    // Not of the element's name: Axis 1.4 makes a class of each, and of two with one name stubs that do not compile.
    message(&mut xml, "SessionFaultMessage", "fault", "SessionFault");
    xml.raw("  <wsdl:portType name=\"SessionPortType\">\n");
    for operation in Operation::ALL {
        let name = operation.name();
        xml.raw("    <wsdl:operation name=\"").raw(name).raw("\">\n      <wsdl:documentation>");
        xml.escaped(operation.documentation()).raw("</wsdl:documentation>\n      <wsdl:input message=\"tns:").raw(name);
        xml.raw("\"/>\n      <wsdl:output message=\"tns:").raw(name).raw("Response\"/>\n");
        xml.raw(
            "      <wsdl:fault name=\"SessionFault\" message=\"tns:SessionFaultMessage\"/>\n    </wsdl:operation>\n",
        );
    }
    xml.raw("  </wsdl:portType>\n");
    for (suffix, _, prefix) in ports.clone() {
        binding(&mut xml, suffix, prefix);
    }
    xml.raw("  <wsdl:service name=\"SessionService\">\n");
    for (suffix, _, prefix) in ports {
        xml.raw("    <wsdl:port name=\"SessionPort").raw(suffix).raw("\" binding=\"tns:SessionBinding").raw(suffix);
        xml.raw("\">\n      <")
            .raw(prefix)
            .raw(":address location=\"")
            .escaped(location)
            .raw("\"/>\n    </wsdl:port>\n");
    }
    xml.raw("  </wsdl:service>\n</wsdl:definitions>\n");
    xml.into_string()
}

fn binding(xml: &mut Xml, suffix: &str, prefix: &str) {
    xml.raw("  <wsdl:binding name=\"SessionBinding")
        .raw(suffix)
        .raw("\" type=\"tns:SessionPortType\">\n    <")
        .raw(prefix);
    xml.raw(":binding style=\"document\" transport=\"http://schemas.xmlsoap.org/soap/http\"/>\n");
    for operation in Operation::ALL {
        let name = operation.name();
        xml.raw("    <wsdl:operation name=\"").raw(name).raw("\">\n      <").raw(prefix);
        xml.raw(":operation soapAction=\"").raw(NAMESPACE).raw("/").raw(name).raw("\" style=\"document\"/>\n");
        for direction in ["input", "output"] {
            xml.raw("      <wsdl:").raw(direction).raw(">\n        <").raw(prefix).raw(":body use=\"literal\"/>\n");
            xml.raw("      </wsdl:").raw(direction).raw(">\n");
        }
        xml.raw("      <wsdl:fault name=\"SessionFault\">\n        <").raw(prefix);
        xml.raw(":fault name=\"SessionFault\" use=\"literal\"/>\n      </wsdl:fault>\n    </wsdl:operation>\n");
    }
    xml.raw("  </wsdl:binding>\n");
}

#[cfg(test)]
mod tests {
    use roxmltree::Document;

    use super::*;

    #[test]
    fn both_forms_are_well_formed_and_the_old_one_knows_nothing_of_the_new() {
        for soap in [Soap::Both, Soap::Only11] {
            let text = wsdl(soap, SchemaLocation::Beside, "https://example.com/soap/v1?a&b");
            let document = Document::parse(&text).unwrap();
            let named = |name: &str| document.descendants().filter(|node| node.tag_name().name() == name).count();
            let ports = if soap == Soap::Both { 2 } else { 1 };
            assert_eq!((named("port"), named("message")), (ports, 25));
            assert_eq!(text.contains("soap12"), soap == Soap::Both);
            assert!(text.contains("https://example.com/soap/v1?a&amp;b"));
        }
    }

    #[test]
    fn the_schema_has_an_element_for_every_message() {
        let document = Document::parse(xsd()).unwrap();
        let elements: Vec<_> = document.root_element().children().filter_map(|node| node.attribute("name")).collect();
        for operation in Operation::ALL {
            assert!(elements.contains(&operation.name()), "{operation:?}");
            assert!(elements.contains(&format!("{}Response", operation.name()).as_str()), "{operation:?}");
        }
    }
}
