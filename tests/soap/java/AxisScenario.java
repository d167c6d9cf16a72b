// The scenario of `run`, with Axis 1.4 (JAX-RPC; the stubs of its WSDL2Java, of the description with SOAP 1.1 only). Arguments: URL,
// secret, SOAP version, and key: an API key in the HTTP header, $APPLICATION_KEY or $AUDITOR_KEY.

import counterfoil.axis.*;
import counterfoil.axis.holders.*;
import java.net.URL;
import java.util.*;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import javax.xml.rpc.holders.BooleanHolder;
import javax.xml.rpc.holders.StringHolder;
import org.apache.axis.AxisFault;
import org.apache.axis.client.Stub;
import org.apache.axis.transport.http.HTTPConstants;

public class AxisScenario {
    static int count = 0;

    static void check(boolean holds, String what) {
        count++;
        if (!holds) throw new AssertionError("does not hold: " + what);
    }

    static SessionPortType proxy(String url, String key) throws Exception {
        var port = new SessionServiceLocator().getSessionPortSoap11(new URL(url));
        ((Stub) port)._setProperty(HTTPConstants.REQUEST_HEADERS, new Hashtable<>(Map.of("Authorization", "Bearer " + key)));
        return port;
    }

    static SessionFault faultOf(Callable<?> call) throws Exception {
        try {
            call.call();
        } catch (SessionFault fault) {
            return fault;
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

    public static void main(String[] arguments) throws Exception {
        String url = arguments[0];
        var service = proxy(url, System.getenv("APPLICATION_KEY"));
        var auditor = proxy(url, System.getenv("AUDITOR_KEY"));
        String subject = "axis", odd = "<a & b>\n\ttwo ü €";
        var session = new SessionHolder();
        var token = new StringHolder();
        var receipt = new ReceiptHolder();
        var entries = new AttributeEntry[] {entry("odd", odd, null), entry("n", null, "5")};
        service.createSession(subject, "web", null, null, "192.0.2.7", null, entries, session, token, receipt);
        check(session.value.getVersion() == 1 && session.value.getState().equals("active") && session.value.getKind().equals("web"), "create");
        check(session.value.getClientAddress().equals("192.0.2.7"), "address");
        check(receipt.value.getLeafIndex() >= 0 && receipt.value.getLeafHash().length() == 64, "receipt");
        Map<String, String> attributes = new HashMap<>();
        for (var entry : session.value.getAttributeMap()) attributes.put(entry.getKey(), entry.getValue() != null ? entry.getValue() : entry.getJson());
        check(attributes.equals(Map.of("odd", odd, "n", "5")), "attributes come back as they went: " + attributes);
        String id = session.value.getSessionId(), first = token.value;
        var idle = session.value.getIdleExpiresAt();
        var valid = new BooleanHolder();
        var reason = new StringHolder();
        service.validateSession(first, valid, reason, session);
        check(valid.value && session.value.getSessionId().equals(id), "validate");
        service.validateSession("cfs_no", valid, reason, session);
        check(!valid.value && reason.value.equals("unknown"), "an unknown token");
        check(service.getSession(id).getSubject().equals(subject), "get");
        check(!service.touchSession(id).getIdleExpiresAt().before(idle), "touch");
        service.updateSession(id, 1L, new AttributeEntry[] {entry("b", null, "{\"c\": [1, true]}")}, new String[] {"n"}, session, receipt);
        check(Arrays.stream(session.value.getAttributeMap()).map(AttributeEntry::getKey).collect(Collectors.toSet()).equals(Set.of("odd", "b")), "update");
        var stale = faultOf(() -> { service.updateSession(id, 1L, null, null, session, receipt); return null; });
        check(stale.getCode().equals("VERSION_CONFLICT") && stale.getCurrentVersion() == 2, "a stale version");
        service.authenticateSession(id, subject, new String[] {"pwd", "otp"}, "aal2", session, token, receipt);
        check(!token.value.equals(first), "authenticate");
        service.validateSession(first, valid, reason, session);
        check(!valid.value && reason.value.equals("rotated"), "the old token");
        service.renewSession(id, session, token, receipt);
        service.validateSession(token.value, valid, reason, session);
        check(valid.value, "renew");
        var sessions = new SessionListHolder();
        var next = new StringHolder();
        service.listSessions(subject, null, null, sessions, next);
        check(sessions.value[0].getSessionId().equals(id), "list");
        check(service.getReceipt(receipt.value.getLeafIndex()).contains("c2sp.org"), "receipt text");
        var events = new AuditEventListHolder();
        check(faultOf(() -> { service.queryAudit(null, null, null, id, null, null, events, next); return null; }).getCode().equals("NOT_ALLOWED"),
            "an application does not read the log");
        auditor.queryAudit(null, null, null, id, null, null, events, next);
        check(Arrays.stream(events.value).map(AuditEvent::getVersion).collect(Collectors.toList()).equals(List.of(4L, 3L, 2L, 1L)), "the log has it all");
        service.terminateSession(id, "logout", session, receipt);
        long ended = receipt.value.getLeafIndex();
        check(session.value.getEndReason().equals("logout"), "terminate");
        service.terminateSession(id, "logout", session, receipt);
        check(receipt.value.getLeafIndex() == ended, "terminate twice");
        check(service.getSession(id).getState().equals("ended"), "get after the end");
        check(faultOf(() -> service.touchSession(id)).getCode().equals("SESSION_ENDED"), "touch after the end");
        check(faultOf(() -> service.getSession("0190a5c2-7c1e-7000-8000-00000000000a")).getCode().equals("SESSION_NOT_FOUND"), "unknown");
        check(faultOf(() -> { service.createSession(null, "no", null, null, null, null, null, session, token, receipt); return null; }).getCode().equals("VALIDATION_FAILED"), "a bad kind");
        // Axis writes a character beyond U+FFFF as two halves, which no XML may hold: refused, and not stored as something else.
        check(faultOf(() -> { service.createSession("🧀", null, null, null, null, null, null, session, token, receipt); return null; }).getCode().equals("VALIDATION_FAILED"), "half characters");
        for (int i = 0; i < 2; i++) service.createSession(subject, null, null, null, null, null, null, session, token, receipt);
        check(service.terminateSubjectSessions(subject, null, null) == 2, "log out everywhere");
        try {
            proxy(url, "cfk_not_a_key").getSession(id);
            throw new AssertionError("a stranger got in");
        } catch (AxisFault refused) {
            check(refused.getFaultCode().getLocalPart().equals("FailedAuthentication"), "a wrong key: " + refused.getFaultCode());
        }
        System.out.println(count + " checks hold");
    }
}
