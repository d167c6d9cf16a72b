// The scenario of `run`, with gSOAP's proxies generated from the live WSDL. Arguments: URL, secret, SOAP version, text or digest.
#include "SessionBindingSoap11.nsmap"
#include "soapSessionBindingSoap11Proxy.h"
#include "wsseapi.h"
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

static int count = 0;

static void check(bool holds, const std::string &what) {
  count += 1;
  if (!holds) {
    std::cerr << "does not hold: " << what << std::endl;
    exit(1);
  }
}

static std::string url, secret, version, auth_way;

struct Consumer {
  SessionBindingSoap11Proxy proxy;
  std::string name, password;

  Consumer(const char *name, const std::string &password) : proxy(SOAP_C_UTFSTRING), name(name), password(password) {
    soap_register_plugin(proxy.soap, soap_wsse);
    proxy.soap_endpoint = url.c_str();
  }

  // A header for each call: a nonce is good once.
  struct soap *ready() {
    soap_wsse_delete_Security(proxy.soap);
    if (auth_way == "digest")
      soap_wsse_add_UsernameTokenDigest(proxy.soap, "User", name.c_str(), password.c_str());
    else
      soap_wsse_add_UsernameTokenText(proxy.soap, "User", name.c_str(), password.c_str());
    return proxy.soap;
  }

  void must(int outcome, const char *what) {
    if (outcome != SOAP_OK) {
      proxy.soap_stream_fault(std::cerr);
      check(false, what);
    }
    count += 1;
  }

  std::string code(int outcome) {
    check(outcome != SOAP_OK, "a fault");
    struct SOAP_ENV__Detail *detail = proxy.soap->fault ? (version == "1.2" ? proxy.soap->fault->SOAP_ENV__Detail : proxy.soap->fault->detail) : NULL;
    if (!detail || !detail->ns1__SessionFault) {
      const char **subcode = soap_faultsubcode(proxy.soap);
      const char **code = soap_faultcode(proxy.soap);
      return std::string(code && *code ? *code : "") + " " + (subcode && *subcode ? *subcode : "");
    }
    _ns1__SessionFault *fault = detail->ns1__SessionFault;
    return fault->code + (fault->currentVersion ? " " + std::to_string(*fault->currentVersion) : "");
  }
};

int main(int argc, char **argv) {
  if (argc < 5) return 2;
  url = argv[1], secret = argv[2], version = argv[3], auth_way = argv[4];
  Consumer service("billing", secret), auditor("audit", secret);
  SessionBindingSoap11Proxy &call = service.proxy;
  std::string subject = "gsoap-" + version + "-" + auth_way, kind = "web", address = "192.0.2.7";
  std::string odd = "<a & b>\n\ttwo \xc3\xbc \xe2\x82\xac \xf0\x9f\xa7\x80", five = "5", object = "{\"c\": [1, true]}";

  _ns1__CreateSession create;
  ns1__AttributeMap map;
  ns1__AttributeEntry text, number;
  text.key = "odd", text.value = &odd;
  number.key = "n", number.json = &five;
  map.entry = {&text, &number};
  create.subject = &subject, create.kind = &kind, create.clientAddress = &address, create.attributeMap = &map;
  _ns1__CreateSessionResponse created;
  service.ready();
  service.must(call.CreateSession(&create, created), "create");
  std::string id = created.session->sessionId, token = created.token;
  check(created.session->version == 1 && created.session->state == "active" && created.session->kind == "web", "create");
  check(created.session->clientAddress && *created.session->clientAddress == address, "address");
  check(created.receipt->leafIndex >= 0 && created.receipt->leafHash.size() == 64, "receipt");
  bool same = created.session->attributeMap->entry.size() == 2;
  for (ns1__AttributeEntry *entry : created.session->attributeMap->entry)
    same = same && (entry->key == "odd" ? entry->value && *entry->value == odd : entry->json && *entry->json == five);
  check(same, "attributes come back as they went");

  auto validate = [&](const std::string &token) {
    _ns1__ValidateSession request;
    _ns1__ValidateSessionResponse response;
    request.token = token;
    service.ready();
    service.must(call.ValidateSession(&request, response), "validate");
    return response.valid ? std::string("valid") : *response.reason;
  };
  check(validate(token) == "valid", "validate");
  check(validate("cfs_no") == "unknown", "an unknown token");

  _ns1__GetSession get;
  _ns1__GetSessionResponse got;
  get.sessionId = id;
  service.ready();
  service.must(call.GetSession(&get, got), "get");
  check(*got.session->subject == subject, "get");
  _ns1__TouchSession touch;
  _ns1__TouchSessionResponse touched;
  touch.sessionId = id;
  service.ready();
  service.must(call.TouchSession(&touch, touched), "touch");
  check(touched.session->idleExpiresAt >= created.session->idleExpiresAt, "touch");

  _ns1__UpdateSession update;
  _ns1__UpdateSessionResponse updated;
  LONG64 one = 1;
  ns1__AttributeMap change;
  ns1__AttributeEntry b;
  ns1__KeyList keys;
  b.key = "b", b.json = &object;
  change.entry = {&b};
  keys.key = {"n"};
  update.sessionId = id, update.expectedVersion = &one, update.attributeMap = &change, update.removeKeys = &keys;
  service.ready();
  service.must(call.UpdateSession(&update, updated), "update");
  check(updated.session->attributeMap->entry.size() == 2 && updated.session->version == 2, "update");
  _ns1__UpdateSession stale;
  stale.sessionId = id, stale.expectedVersion = &one;
  service.ready();
  std::string said = service.code(call.UpdateSession(&stale, updated));
  check(said == "VERSION_CONFLICT 2", "a stale version: " + said);

  _ns1__AuthenticateSession authenticate;
  _ns1__AuthenticateSessionResponse bound;
  ns1__MethodList methods;
  std::string level = "aal2";
  methods.method = {"pwd", "otp"};
  authenticate.sessionId = id, authenticate.subject = subject, authenticate.methods = &methods, authenticate.level = &level;
  service.ready();
  service.must(call.AuthenticateSession(&authenticate, bound), "authenticate");
  check(bound.token != token && validate(token) == "rotated", "authenticate rotates");
  _ns1__RenewSession renew;
  _ns1__RenewSessionResponse renewed;
  renew.sessionId = id;
  service.ready();
  service.must(call.RenewSession(&renew, renewed), "renew");
  check(validate(renewed.token) == "valid", "renew");

  _ns1__ListSessions list;
  _ns1__ListSessionsResponse listed;
  list.subject = &subject;
  service.ready();
  service.must(call.ListSessions(&list, listed), "list");
  check(listed.sessions->session.at(0)->sessionId == id, "list");
  _ns1__GetReceipt receipt;
  _ns1__GetReceiptResponse proof;
  receipt.leafIndex = renewed.receipt->leafIndex;
  service.ready();
  service.must(call.GetReceipt(&receipt, proof), "receipt");
  check(proof.receiptText.find("c2sp.org") != std::string::npos, "receipt text");

  _ns1__QueryAudit query;
  _ns1__QueryAuditResponse found;
  query.sessionId = &id;
  service.ready();
  check(service.code(call.QueryAudit(&query, found)) == "NOT_ALLOWED", "an application does not read the log");
  auditor.ready();
  auditor.must(auditor.proxy.QueryAudit(&query, found), "query");
  check(found.events->event.size() == 4 && *found.events->event[0]->version == 4 && found.events->event[0]->protocol == "soap",
        "the log has it all");

  _ns1__TerminateSession terminate;
  _ns1__TerminateSessionResponse ended;
  std::string reason = "logout";
  terminate.sessionId = id, terminate.reason = &reason;
  service.ready();
  service.must(call.TerminateSession(&terminate, ended), "terminate");
  LONG64 place = ended.receipt->leafIndex;
  service.ready();
  service.must(call.TerminateSession(&terminate, ended), "terminate again");
  check(*ended.session->endReason == "logout" && ended.receipt->leafIndex == place, "terminate twice");
  service.ready();
  service.must(call.GetSession(&get, got), "get after the end");
  check(got.session->state == "ended", "get after the end");
  service.ready();
  check(service.code(call.TouchSession(&touch, touched)) == "SESSION_ENDED", "touch after the end");
  get.sessionId = "0190a5c2-7c1e-7000-8000-00000000000a";
  service.ready();
  check(service.code(call.GetSession(&get, got)) == "SESSION_NOT_FOUND", "unknown");
  _ns1__CreateSession bad, plain;
  std::string no = "no";
  bad.kind = &no;
  service.ready();
  check(service.code(call.CreateSession(&bad, created)) == "VALIDATION_FAILED", "a bad kind");
  plain.subject = &subject;
  for (int i = 0; i < 2; ++i) {
    service.ready();
    service.must(call.CreateSession(&plain, created), "create");
  }
  _ns1__TerminateSubjectSessions all;
  _ns1__TerminateSubjectSessionsResponse gone;
  all.subject = subject;
  service.ready();
  service.must(call.TerminateSubjectSessions(&all, gone), "log out everywhere");
  check(gone.ended == 2, "log out everywhere");

  Consumer stranger("billing", "not the secret, but as long");
  get.sessionId = id;
  stranger.ready();
  said = stranger.code(stranger.proxy.GetSession(&get, got));
  check(said.find("FailedAuthentication") != std::string::npos, "a wrong secret: " + said);
  std::cout << count << " checks hold" << std::endl;
  return 0;
}
