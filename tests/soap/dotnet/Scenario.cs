// The scenario of `run`, with the stubs of `wsdl` (.NET 2.0's, here Mono's). Arguments: URL, secret, SOAP version, and text, digest
// or key: an API key in the HTTP header, which is $APPLICATION_KEY or $AUDITOR_KEY.

using System;
using System.Collections.Generic;
using System.Linq;
using System.Net;
using System.Security.Cryptography;
using System.Text;
using System.Web.Services.Protocols;
using System.Xml;
using System.Xml.Serialization;
using Counterfoil;

[XmlRoot(Namespace = Names.Wsse)]
public class Security : SoapHeader
{
    [XmlElement(Namespace = Names.Wsse)] public UsernameToken UsernameToken;
}

public class UsernameToken
{
    [XmlElement(Namespace = Names.Wsse)] public string Username;
    [XmlElement(Namespace = Names.Wsse)] public Password Password;
    [XmlElement(Namespace = Names.Wsse)] public string Nonce;
    [XmlElement(Namespace = Names.Wsu)] public string Created;
}

public class Password
{
    [XmlAttribute] public string Type;
    [XmlText] public string Value;
}

public static class Names
{
    const string Wss = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-";
    public const string Wsse = Wss + "wssecurity-secext-1.0.xsd";
    public const string Wsu = Wss + "wssecurity-utility-1.0.xsd";
    public const string Token = Wss + "username-token-profile-1.0";
}

/// The generated class, and how it shows who asks.
class Client : SessionService
{
    readonly string name, secret, way;

    public Client(string url, string version, string name, string secret, string way)
    {
        Url = url;
        SoapVersion = version == "1.1" ? SoapProtocolVersion.Soap11 : SoapProtocolVersion.Soap12;
        this.name = name;
        this.secret = secret;
        this.way = way;
    }

    protected override WebRequest GetWebRequest(Uri uri)
    {
        var request = base.GetWebRequest(uri);
        if (way == "key") request.Headers["Authorization"] = "Bearer " + secret;
        return request;
    }

    protected override XmlWriter GetWriterForMessage(SoapClientMessage message, int size)
    {
        if (way != "key") message.Headers.Add(new Security { UsernameToken = Token() });
        return base.GetWriterForMessage(message, size);
    }

    UsernameToken Token()
    {
        var nonce = new byte[16];
        using (var random = RandomNumberGenerator.Create()) random.GetBytes(nonce);
        var created = DateTime.UtcNow.ToString("yyyy-MM-ddTHH:mm:ss.fffZ");
        var password = secret;
        if (way == "digest")
            using (var sha1 = SHA1.Create())
                password = Convert.ToBase64String(sha1.ComputeHash(nonce.Concat(Encoding.UTF8.GetBytes(created + secret)).ToArray()));
        return new UsernameToken
        {
            Username = name,
            Password = new Password { Type = Names.Token + (way == "digest" ? "#PasswordDigest" : "#PasswordText"), Value = password },
            Nonce = Convert.ToBase64String(nonce),
            Created = created,
        };
    }
}

static class Scenario
{
    static int count;

    static void Check(bool holds, string what)
    {
        count++;
        if (!holds) throw new Exception("does not hold: " + what);
    }

    static SoapException FaultOf(Action call)
    {
        try
        {
            call();
        }
        catch (SoapException fault)
        {
            return fault;
        }
        throw new Exception("no fault");
    }

    static string Of(SoapException fault, string name)
    {
        var names = new XmlNamespaceManager(fault.Detail.OwnerDocument.NameTable);
        names.AddNamespace("c", "urn:counterfoil:session:v1");
        return fault.Detail.SelectSingleNode(".//c:SessionFault/c:" + name, names)?.InnerText;
    }

    static string Code(Action call) => Of(FaultOf(call), "code");

    static int Main(string[] arguments)
    {
        string url = arguments[0], secret = arguments[1], version = arguments[2], way = arguments[3];
        Func<string, string> own = key => way == "key" ? Environment.GetEnvironmentVariable(key) : secret;
        var service = new Client(url, version, "billing", own("APPLICATION_KEY"), way);
        var auditor = new Client(url, version, "audit", own("AUDITOR_KEY"), way);
        string subject = "dotnet-" + version + "-" + way, odd = "<a & b>\n\ttwo ü € 🧀", token, reason, next;
        Receipt receipt;
        Session session;
        var entries = new[] { new AttributeEntry { key = "odd", value = odd }, new AttributeEntry { key = "n", json = "5" } };
        session = service.CreateSession(subject, "web", 0, false, 0, false, "192.0.2.7", null, entries, out token, out receipt);
        Check(session.version == 1 && session.state == "active" && session.kind == "web", "create");
        Check(session.clientAddress == "192.0.2.7", "address");
        Check(receipt.leafIndex >= 0 && receipt.leafHash.Length == 64, "receipt");
        var attributes = session.attributeMap.ToDictionary(entry => entry.key, entry => entry.value ?? entry.json);
        Check(attributes.Count == 2 && attributes["odd"] == odd && attributes["n"] == "5", "attributes come back as they went");
        var id = session.sessionId;
        var idle = session.idleExpiresAt;
        var first = token;
        Session same;
        Check(service.ValidateSession(first, out reason, out same) && same.sessionId == id, "validate");
        Check(!service.ValidateSession("cfs_no", out reason, out same) && reason == "unknown", "an unknown token");
        Check(service.GetSession(id).subject == subject, "get");
        Check(service.TouchSession(id).idleExpiresAt >= idle, "touch");
        var more = new[] { new AttributeEntry { key = "b", json = "{\"c\": [1, true]}" } };
        session = service.UpdateSession(id, 1, true, more, new[] { "n" }, out receipt);
        Check(new HashSet<string>(session.attributeMap.Select(entry => entry.key)).SetEquals(new[] { "odd", "b" }), "update");
        var stale = FaultOf(() => service.UpdateSession(id, 1, true, null, null, out receipt));
        Check(Of(stale, "code") == "VERSION_CONFLICT" && Of(stale, "currentVersion") == "2", "a stale version");
        service.AuthenticateSession(id, subject, new[] { "pwd", "otp" }, "aal2", out token, out receipt);
        Check(token != first, "authenticate");
        Check(!service.ValidateSession(first, out reason, out same) && reason == "rotated", "the old token");
        service.RenewSession(id, out token, out receipt);
        Check(service.ValidateSession(token, out reason, out same), "renew");
        Check(service.ListSessions(subject, 0, false, null, out next)[0].sessionId == id, "list");
        Check(service.GetReceipt(receipt.leafIndex).Contains("c2sp.org"), "receipt text");
        var never = DateTime.MinValue;
        Check(Code(() => service.QueryAudit(never, false, never, false, null, id, 0, false, null, out next)) == "NOT_ALLOWED", "an application does not read the log");
        var events = auditor.QueryAudit(never, false, never, false, null, id, 0, false, null, out next);
        Check(events.Select(e => e.version).SequenceEqual(new long[] { 4, 3, 2, 1 }) && events[0].protocol == "soap", "the log has it all");
        Check(service.TerminateSession(id, "logout", out receipt).endReason == "logout", "terminate");
        var ended = receipt.leafIndex;
        service.TerminateSession(id, "logout", out receipt);
        Check(receipt.leafIndex == ended, "terminate twice");
        Check(service.GetSession(id).state == "ended", "get after the end");
        Check(Code(() => service.TouchSession(id)) == "SESSION_ENDED", "touch after the end");
        Check(Code(() => service.GetSession("0190a5c2-7c1e-7000-8000-00000000000a")) == "SESSION_NOT_FOUND", "unknown");
        Check(Code(() => service.CreateSession(null, "no", 0, false, 0, false, null, null, null, out token, out receipt)) == "VALIDATION_FAILED", "a bad kind");
        for (var i = 0; i < 2; i++) service.CreateSession(subject, null, 0, false, 0, false, null, null, null, out token, out receipt);
        Check(service.TerminateSubjectSessions(subject, null, null) == 2, "log out everywhere");
        var stranger = new Client(url, version, "billing", "not the secret, but as long", way);
        var refused = FaultOf(() => stranger.GetSession(id));
        Check((refused.Code.Name + refused.SubCode?.Code.Name + refused.Message).Contains(version == "1.1" ? "FailedAuthentication" : "authenticated"), "a wrong secret: " + refused);
        Console.WriteLine(count + " checks hold");
        return 0;
    }
}
