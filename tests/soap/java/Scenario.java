// The scenario of `run`, with JAX-WS (the stubs of wsimport) and WSS4J. Arguments: URL, secret, SOAP version, and text, digest, signed
// (then the keys and certificates are in the folder $SOAP_KEYS) or key: an API key in the HTTP header, $APPLICATION_KEY or $AUDITOR_KEY.

import counterfoil.*;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.net.URL;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.*;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import javax.xml.namespace.QName;
import javax.xml.parsers.DocumentBuilderFactory;
import javax.xml.soap.SOAPConstants;
import javax.xml.soap.SOAPFault;
import javax.xml.transform.dom.DOMSource;
import javax.xml.ws.BindingProvider;
import javax.xml.ws.Holder;
import javax.xml.ws.handler.MessageContext;
import javax.xml.ws.handler.soap.SOAPHandler;
import javax.xml.ws.handler.soap.SOAPMessageContext;
import javax.xml.ws.soap.SOAPFaultException;
import org.apache.ws.security.WSConstants;
import org.apache.ws.security.WSEncryptionPart;
import org.apache.ws.security.components.crypto.Crypto;
import org.apache.ws.security.components.crypto.CryptoFactory;
import org.apache.ws.security.message.*;
import org.w3c.dom.Document;

public class Scenario {
    static int count = 0;

    static void check(boolean holds, String what) {
        count++;
        if (!holds) throw new AssertionError("does not hold: " + what);
    }

    /** Puts the Security header on, with WSS4J. */
    record Secured(String name, String password, String way) implements SOAPHandler<SOAPMessageContext> {
        public boolean handleMessage(SOAPMessageContext context) {
            if (!(Boolean) context.get(MessageContext.MESSAGE_OUTBOUND_PROPERTY)) return true;
            try {
                var bytes = new ByteArrayOutputStream();
                context.getMessage().writeTo(bytes);
                var factory = DocumentBuilderFactory.newInstance();
                factory.setNamespaceAware(true);
                Document document = factory.newDocumentBuilder().parse(new ByteArrayInputStream(bytes.toByteArray()));
                secure(document);
                context.getMessage().getSOAPPart().setContent(new DOMSource(document));
                context.getMessage().saveChanges();
                return true;
            } catch (Exception failure) {
                throw new RuntimeException(failure);
            }
        }

        private void secure(Document document) throws Exception {
            var header = new WSSecHeader();
            header.insertSecurityHeader(document);
            var stamp = new WSSecTimestamp();
            stamp.setTimeToLive(300);
            stamp.build(document, header);
            if (!way.equals("signed")) {
                var token = new WSSecUsernameToken();
                token.setPasswordType(way.equals("digest") ? WSConstants.PASSWORD_DIGEST : WSConstants.PASSWORD_TEXT);
                token.setUserInfo(name, password);
                token.addNonce();
                token.addCreated();
                token.build(document, header);
                return;
            }
            var signature = new WSSecSignature();
            signature.setUserInfo("key", "changeit");
            String soap = document.getDocumentElement().getNamespaceURI();
            // Of the auditor the service has the certificate's fingerprint only: it must be sent. In the other case WSS4J's default will do.
            boolean sent = name.equals("audit") || soap.equals(SOAPConstants.URI_NS_SOAP_1_1_ENVELOPE);
            signature.setKeyIdentifierType(sent ? WSConstants.BST_DIRECT_REFERENCE : WSConstants.ISSUER_SERIAL);
            signature.setSignatureAlgorithm(name.equals("audit") ? "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256" : "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256");
            signature.setDigestAlgo(WSConstants.SHA256);
            signature.setParts(List.of(
                new WSEncryptionPart("Body", soap, "Content"),
                new WSEncryptionPart("Timestamp", WSConstants.WSU_NS, "Content")));
            var keys = new Properties();
            keys.put("org.apache.ws.security.crypto.provider", "org.apache.ws.security.components.crypto.Merlin");
            keys.put("org.apache.ws.security.crypto.merlin.keystore.type", "pkcs12");
            keys.put("org.apache.ws.security.crypto.merlin.keystore.password", "changeit");
            keys.put("org.apache.ws.security.crypto.merlin.keystore.file", System.getenv("SOAP_KEYS") + "/" + name + ".p12");
            Crypto crypto = CryptoFactory.getInstance(keys);
            signature.build(document, crypto, header);
        }

        public boolean handleFault(SOAPMessageContext context) { return true; }
        public void close(MessageContext context) {}
        public Set<QName> getHeaders() { return Set.of(new QName(WSConstants.WSSE_NS, "Security")); }
    }

    static SessionPortType proxy(String url, String version, String name, String password, String way) throws Exception {
        var service = new SessionService(new URL(url + "?wsdl"));
        var port = version.equals("1.1") ? service.getSessionPortSoap11() : service.getSessionPortSoap12();
        if (way.equals("key")) {
            var bearer = Map.of("Authorization", List.of("Bearer " + password));
            ((BindingProvider) port).getRequestContext().put(MessageContext.HTTP_REQUEST_HEADERS, bearer);
            return port;
        }
        var binding = ((BindingProvider) port).getBinding();
        var chain = binding.getHandlerChain();
        chain.add(new Secured(name, password, way));
        binding.setHandlerChain(chain);
        return port;
    }

    static SessionFault faultOf(Callable<?> call) throws Exception {
        try {
            call.call();
        } catch (SessionFaultMessage fault) {
            return fault.getFaultInfo();
        }
        throw new AssertionError("no fault");
    }

    static AttributeEntry entry(String key, String value, String json) {
        var entry = new AttributeEntry();
        entry.setKey(key);
        entry.setValue(value);
        entry.setJson(json);
        return entry;
    }

    static AttributeMap map(AttributeEntry... entries) {
        var map = new AttributeMap();
        map.getEntry().addAll(List.of(entries));
        return map;
    }

    public static void main(String[] arguments) throws Exception {
        String url = arguments[0], secret = arguments[1], version = arguments[2], way = arguments[3];
        boolean key = way.equals("key");
        var service = proxy(url, version, "billing", key ? System.getenv("APPLICATION_KEY") : secret, way);
        var auditor = proxy(url, version, "audit", key ? System.getenv("AUDITOR_KEY") : secret, way);
        // Metro 2.3 cannot send a line end through a SOAPHandler (SAAJ0543).
        String subject = "java-" + version + "-" + way, odd = "<a & b>" + (key ? "\n" : "") + "\ttwo ü € 🧀";
        var session = new Holder<Session>();
        var token = new Holder<String>();
        var receipt = new Holder<Receipt>();
        service.createSession(subject, "web", null, null, "192.0.2.7", null, map(entry("odd", odd, null), entry("n", null, "5")), session, token, receipt);
        check(session.value.getVersion() == 1 && session.value.getState().equals("active") && session.value.getKind().equals("web"), "create");
        check(session.value.getClientAddress().equals("192.0.2.7"), "address");
        check(receipt.value.getLeafIndex() >= 0 && receipt.value.getLeafHash().length() == 64, "receipt");
        Map<String, String> attributes = new HashMap<>();
        for (var entry : session.value.getAttributeMap().getEntry()) attributes.put(entry.getKey(), entry.getValue() != null ? entry.getValue() : entry.getJson());
        check(attributes.equals(Map.of("odd", odd, "n", "5")), "attributes come back as they went: " + attributes);
        String id = session.value.getSessionId(), first = token.value;
        var idle = session.value.getIdleExpiresAt();
        var valid = new Holder<Boolean>();
        var reason = new Holder<String>();
        service.validateSession(first, valid, reason, session);
        check(valid.value && session.value.getSessionId().equals(id), "validate");
        service.validateSession("cfs_no", valid, reason, session);
        check(!valid.value && reason.value.equals("unknown"), "an unknown token");
        check(service.getSession(id).getSubject().equals(subject), "get");
        check(service.touchSession(id).getIdleExpiresAt().compare(idle) >= 0, "touch");
        var removed = new KeyList();
        removed.getKey().add("n");
        service.updateSession(id, 1L, map(entry("b", null, "{\"c\": [1, true]}")), removed, session, receipt);
        check(session.value.getAttributeMap().getEntry().stream().map(AttributeEntry::getKey).collect(Collectors.toSet()).equals(Set.of("odd", "b")), "update");
        var stale = faultOf(() -> { service.updateSession(id, 1L, null, null, session, receipt); return null; });
        check(stale.getCode().equals("VERSION_CONFLICT") && stale.getCurrentVersion() == 2, "a stale version");
        var methods = new MethodList();
        methods.getMethod().addAll(List.of("pwd", "otp"));
        service.authenticateSession(id, subject, methods, "aal2", session, token, receipt);
        check(!token.value.equals(first), "authenticate");
        service.validateSession(first, valid, reason, session);
        check(!valid.value && reason.value.equals("rotated"), "the old token");
        service.renewSession(id, session, token, receipt);
        long renewed = receipt.value.getLeafIndex();
        service.validateSession(token.value, valid, reason, session);
        check(valid.value, "renew");
        var sessions = new Holder<SessionList>();
        var next = new Holder<String>();
        service.listSessions(subject, null, null, sessions, next);
        check(sessions.value.getSession().get(0).getSessionId().equals(id), "list");
        check(service.getReceipt(renewed).contains("c2sp.org"), "receipt text");
        var events = new Holder<AuditEventList>();
        check(faultOf(() -> { service.queryAudit(null, null, null, id, null, null, events, next); return null; }).getCode().equals("NOT_ALLOWED"),
            "an application does not read the log");
        auditor.queryAudit(null, null, null, id, null, null, events, next);
        check(events.value.getEvent().stream().map(AuditEvent::getVersion).collect(Collectors.toList()).equals(List.of(4L, 3L, 2L, 1L)), "the log has it all");
        check(events.value.getEvent().get(0).getProtocol().equals("soap"), "protocol");
        service.terminateSession(id, "logout", session, receipt);
        long ended = receipt.value.getLeafIndex();
        check(session.value.getEndReason().equals("logout"), "terminate");
        service.terminateSession(id, "logout", session, receipt);
        check(receipt.value.getLeafIndex() == ended, "terminate twice");
        check(service.getSession(id).getState().equals("ended"), "get after the end");
        check(faultOf(() -> service.touchSession(id)).getCode().equals("SESSION_ENDED"), "touch after the end");
        check(faultOf(() -> service.getSession("0190a5c2-7c1e-7000-8000-00000000000a")).getCode().equals("SESSION_NOT_FOUND"), "unknown");
        check(faultOf(() -> { service.createSession(null, "no", null, null, null, null, null, session, token, receipt); return null; }).getCode().equals("VALIDATION_FAILED"), "a bad kind");
        for (int i = 0; i < 2; i++) service.createSession(subject, null, null, null, null, null, null, session, token, receipt);
        check(service.terminateSubjectSessions(subject, null, null) == 2, "log out everywhere");
        var stranger = proxy(url, version, way.equals("signed") ? "stranger" : "billing", "not the secret, but as long", way);
        try {
            stranger.getSession(id);
            throw new AssertionError("a stranger got in");
        } catch (SOAPFaultException refused) {
            SOAPFault fault = refused.getFault();
            var codes = new StringBuilder(fault.getFaultCode());
            if (version.equals("1.2")) for (Iterator<?> at = fault.getFaultSubcodes(); at.hasNext(); ) codes.append(at.next());
            check(codes.toString().contains("FailedAuthentication"), "a wrong secret: " + codes);
        }
        System.out.println(count + " checks hold");
    }
}
