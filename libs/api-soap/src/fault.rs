//! Faults, in both versions.

use api_http::{Problem, ProblemCode, SoapFault};
use session_model::Version as SessionVersion;
use session_service::ServiceError;

use crate::NAMESPACE;
use crate::addressing::{self, Echo};
use crate::envelope::Version;
use crate::security::{self, SECEXT, UTILITY};
use crate::writer::Xml;

/// A refusal on its way to the client.
#[derive(Debug)]
pub(crate) struct Fault {
    kind: Kind,
    description: String,
}

#[derive(Debug)]
enum Kind {
    /// The envelope is of no SOAP we speak.
    VersionMismatch,
    /// These headers must be understood, and are not.
    NotUnderstood(Vec<(String, String)>),
    /// WS-Security refuses. Told by its code alone: a fault of a header has no detail (SOAP 1.1 section 4.4).
    Security(SecurityCode),
    /// WS-Addressing refuses, likewise.
    Addressing(&'static str),
    /// What REST would tell in a problem document.
    Problem(ProblemCode, Option<SessionVersion>),
}

/// Fault codes of WS-Security 1.1 section 12, and of its time stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecurityCode {
    UnsupportedSecurityToken,
    UnsupportedAlgorithm,
    InvalidSecurity,
    InvalidSecurityToken,
    FailedAuthentication,
    MessageExpired,
}

impl SecurityCode {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 6] = [
        Self::UnsupportedSecurityToken,
        Self::UnsupportedAlgorithm,
        Self::InvalidSecurity,
        Self::InvalidSecurityToken,
        Self::FailedAuthentication,
        Self::MessageExpired,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::UnsupportedSecurityToken => "wsse:UnsupportedSecurityToken",
            Self::UnsupportedAlgorithm => "wsse:UnsupportedAlgorithm",
            Self::InvalidSecurity => "wsse:InvalidSecurity",
            Self::InvalidSecurityToken => "wsse:InvalidSecurityToken",
            Self::FailedAuthentication => "wsse:FailedAuthentication",
            Self::MessageExpired => "wsu:MessageExpired",
        }
    }
}

impl Fault {
    pub(crate) fn version_mismatch() -> Self {
        let description = "the envelope is neither SOAP 1.1 nor SOAP 1.2".to_owned();
        Self { kind: Kind::VersionMismatch, description }
    }

    pub(crate) fn not_understood(headers: Vec<(String, String)>) -> Self {
        let names: Vec<_> = headers.iter().map(|(namespace, name)| format!("{{{namespace}}}{name}")).collect();
        let description = format!("must be understood, and is not: {}", names.join(", "));
        Self { kind: Kind::NotUnderstood(headers), description }
    }

    pub(crate) fn security(code: SecurityCode, description: &str) -> Self {
        Self { kind: Kind::Security(code), description: description.to_owned() }
    }

    pub(crate) fn addressing(subcode: &'static str, description: &str) -> Self {
        Self { kind: Kind::Addressing(subcode), description: description.to_owned() }
    }

    /// The fault of a message whose version is not known is told in this one; that no version fits, always in the oldest
    /// (SOAP 1.2 part 1 appendix A, Basic Profile R1015).
    const fn told_in(&self, version: Version) -> Version {
        match self.kind {
            Kind::VersionMismatch => Version::Soap11,
            Kind::NotUnderstood(_) | Kind::Security(_) | Kind::Addressing(_) | Kind::Problem(..) => version,
        }
    }

    /// The problem it tells of, for the headers of the answer.
    pub(crate) const fn problem(&self) -> Option<ProblemCode> {
        match self.kind {
            Kind::Problem(code, _) => Some(code),
            Kind::VersionMismatch | Kind::NotUnderstood(_) | Kind::Security(_) | Kind::Addressing(_) => None,
        }
    }

    /// The envelope, and the version it is in.
    pub(crate) fn envelope(&self, version: Version, echo: &Echo, correlation: &str) -> (Version, String) {
        let version = self.told_in(version);
        let mut xml = Xml::with_capacity(1_024);
        begin(&mut xml, version);
        self.header(&mut xml, version, echo);
        xml.open("soap:Body").open("soap:Fault");
        match version {
            Version::Soap11 => self.write_11(&mut xml, correlation),
            Version::Soap12 => self.write_12(&mut xml, correlation),
        }
        xml.close("soap:Fault").close("soap:Body").close("soap:Envelope");
        (version, xml.into_string())
    }

    fn header(&self, xml: &mut Xml, version: Version, echo: &Echo) {
        let mut block = Xml::with_capacity(0);
        match &self.kind {
            Kind::VersionMismatch => {
                let namespace = Version::Soap12.namespace();
                block.raw("<env:Upgrade xmlns:env=\"").raw(namespace).raw("\">");
                for (prefix, version) in [("env", Version::Soap12), ("old", Version::Soap11)] {
                    block.raw("<env:SupportedEnvelope xmlns:").raw(prefix).raw("=\"").raw(version.namespace());
                    block.raw("\" qname=\"").raw(prefix).raw(":Envelope\"/>");
                }
                block.raw("</env:Upgrade>");
            }
            Kind::NotUnderstood(headers) if version == Version::Soap12 => {
                for (namespace, name) in headers {
                    // A prefix cannot stand for no namespace.
                    if namespace.is_empty() {
                        block.raw("<soap:NotUnderstood qname=\"");
                    } else {
                        block.raw("<soap:NotUnderstood xmlns:h=\"").escaped(namespace).raw("\" qname=\"h:");
                    }
                    block.escaped(name).raw("\"/>");
                }
            }
            Kind::NotUnderstood(_) | Kind::Security(_) | Kind::Addressing(_) | Kind::Problem(..) => {}
        }
        let action = match self.kind {
            Kind::Addressing(_) => addressing::FAULT_ACTION,
            Kind::VersionMismatch | Kind::NotUnderstood(_) | Kind::Security(_) => addressing::SOAP_FAULT_ACTION,
            Kind::Problem(..) => OUR_FAULT_ACTION,
        };
        header(xml, echo, action, &block.into_string());
    }

    /// `Client`, `Server` and so on, in either version's words.
    const fn base(&self, version: Version) -> &'static str {
        let sender = match self.kind {
            Kind::VersionMismatch => return "soap:VersionMismatch",
            Kind::NotUnderstood(_) => return "soap:MustUnderstand",
            Kind::Security(_) | Kind::Addressing(_) => true,
            Kind::Problem(code, _) => code.soap().sender,
        };
        match (version, sender) {
            (Version::Soap11, true) => "soap:Client",
            (Version::Soap11, false) => "soap:Server",
            (Version::Soap12, true) => "soap:Sender",
            (Version::Soap12, false) => "soap:Receiver",
        }
    }

    fn write_11(&self, xml: &mut Xml, correlation: &str) {
        // The children of a SOAP 1.1 fault are in no namespace (Basic Profile R1001), and its code is never dotted (R1031).
        match self.kind {
            Kind::Security(code) => {
                let (prefix, namespace) = security_prefix(code);
                xml.raw("<faultcode xmlns:").raw(prefix).raw("=\"").raw(namespace).raw("\">").raw(code.name());
                xml.close("faultcode");
            }
            Kind::Addressing(subcode) => {
                xml.raw("<faultcode xmlns:wsa=\"").raw(addressing::NAMESPACE).raw("\">").raw(subcode);
                xml.close("faultcode");
            }
            Kind::VersionMismatch | Kind::NotUnderstood(_) | Kind::Problem(..) => {
                xml.plain("faultcode", self.base(Version::Soap11));
            }
        }
        xml.text("faultstring", &self.description);
        if let Kind::Problem(code, current) = self.kind {
            xml.open("detail");
            self.detail(xml, code.soap(), current, correlation);
            xml.close("detail");
        }
    }

    fn write_12(&self, xml: &mut Xml, correlation: &str) {
        xml.open("soap:Code").plain("soap:Value", self.base(Version::Soap12));
        let subcode = |xml: &mut Xml, prefix: &str, namespace: &str, value: &str| {
            xml.open("soap:Subcode").raw("<soap:Value xmlns:").raw(prefix).raw("=\"").raw(namespace).raw("\">");
            xml.raw(value).close("soap:Value").close("soap:Subcode");
        };
        match self.kind {
            Kind::Security(code) => {
                let (prefix, namespace) = security_prefix(code);
                subcode(xml, prefix, namespace, code.name());
            }
            Kind::Addressing(code) => subcode(xml, "wsa", addressing::NAMESPACE, code),
            Kind::Problem(code, _) => subcode(xml, "cf", NAMESPACE, &format!("cf:{}", code.soap().code)),
            Kind::VersionMismatch | Kind::NotUnderstood(_) => {}
        }
        xml.close("soap:Code").open("soap:Reason").raw("<soap:Text xml:lang=\"en\">");
        xml.escaped(&self.description).close("soap:Text").close("soap:Reason");
        if let Kind::Problem(code, current) = self.kind {
            xml.open("soap:Detail");
            self.detail(xml, code.soap(), current, correlation);
            xml.close("soap:Detail");
        }
    }

    /// The machine code is here in both versions: there are clients that show nothing else of a SOAP 1.2 fault.
    fn detail(&self, xml: &mut Xml, fault: SoapFault, current: Option<SessionVersion>, correlation: &str) {
        xml.raw("<SessionFault xmlns=\"").raw(NAMESPACE).raw("\">");
        xml.plain("code", fault.code).text("description", &self.description).text("correlationId", correlation);
        xml.plain("retryable", fault.retryable);
        if let Some(current) = current {
            xml.plain("currentVersion", current);
        }
        xml.close("SessionFault");
    }
}

const OUR_FAULT_ACTION: &str = "urn:counterfoil:session:v1/SessionFault";

const fn security_prefix(code: SecurityCode) -> (&'static str, &'static str) {
    match code {
        SecurityCode::MessageExpired => ("wsu", UTILITY),
        SecurityCode::UnsupportedSecurityToken
        | SecurityCode::UnsupportedAlgorithm
        | SecurityCode::InvalidSecurity
        | SecurityCode::InvalidSecurityToken
        | SecurityCode::FailedAuthentication => ("wsse", SECEXT),
    }
}

/// Begins an answer. Always with an XML declaration: there are clients that need it.
pub(crate) fn begin(xml: &mut Xml, version: Version) {
    xml.raw("<?xml version=\"1.0\" encoding=\"UTF-8\"?><soap:Envelope xmlns:soap=\"")
        .raw(version.namespace())
        .raw("\">");
}

/// The header of an answer: what the request asked for, and what this answer needs; nothing if that is nothing.
pub(crate) fn header(xml: &mut Xml, echo: &Echo, action: &str, block: &str) {
    if !echo.is_needed() && block.is_empty() {
        return;
    }
    xml.open("soap:Header").raw(block);
    if let Some(addressed) = &echo.addressing {
        addressing::write(xml, action, addressed);
    }
    if let Some(now) = echo.timestamp {
        security::write_timestamp(xml, now);
    }
    xml.close("soap:Header");
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        let bad: Vec<_> = problem.fields().map(|(pointer, what)| format!("{} {what}", element(pointer))).collect();
        let description = if bad.is_empty() { problem.detail().to_owned() } else { bad.join("; ") };
        Self { kind: Kind::Problem(problem.code(), None), description }
    }
}

impl From<ServiceError> for Fault {
    fn from(failure: ServiceError) -> Self {
        let current = if let ServiceError::StaleVersion { current } = &failure { Some(*current) } else { None };
        let problem = Problem::from(failure);
        let code = problem.code();
        Self { kind: Kind::Problem(code, current), ..Self::from(problem) }
    }
}

/// The element that a pointer of the service means.
fn element(pointer: &str) -> &str {
    match pointer {
        "/idle_timeout_s" => "idleTimeoutSeconds",
        "/absolute_timeout_s" => "absoluteTimeoutSeconds",
        "" => "attributeMap",
        other => other.trim_start_matches('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every fault there is, in a version: what is told of each is to the letter what it always was.
    fn all(version: Version) -> String {
        let mut faults = vec![
            Fault::version_mismatch(),
            Fault::not_understood(vec![("urn:a&b".into(), "Tx".into()), (String::new(), "Ty".into())]),
            Fault::addressing("wsa:OnlyAnonymousAddressSupported", "why"),
            ServiceError::StaleVersion { current: SessionVersion(7) }.into(),
        ];
        faults.extend(SecurityCode::ALL.map(|code| Fault::security(code, "why")));
        faults.extend(ProblemCode::ALL.map(|code| Fault::from(Problem::new(code, "why <&> not"))));
        let lines = faults.iter().map(|fault| {
            let (told_in, xml) = fault.envelope(version, &Echo::default(), "4bf92f3577b34da6a3ce929d0e0e4736");
            roxmltree::Document::parse(&xml).unwrap();
            format!("{:?} {told_in:?}\n{xml}\n", fault.kind)
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn faults_of_soap_11() {
        insta::assert_snapshot!(all(Version::Soap11));
    }

    #[test]
    fn faults_of_soap_12() {
        insta::assert_snapshot!(all(Version::Soap12));
    }
}
