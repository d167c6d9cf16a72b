// The scenario of `run`, with node-soap reading the live WSDL. Arguments: URL, secret, SOAP version, and text, digest or signed;
// then the keys and certificates are in the folder $SOAP_KEYS.
const fs = require('fs');
const soap = require('soap');
const [url, secret, version, auth] = process.argv.slice(2);
let count = 0;
const check = (holds, what) => {
  count += 1;
  if (!holds) throw new Error(`does not hold: ${what}`);
};
const port = version === '1.1' ? 'SessionPortSoap11' : 'SessionPortSoap12';

// The token is signed, too, and has an id of its own each time: without it two equal calls within a second, which is as fine as the
// time stamp is, would be one message, and the second a replay. WSSecurityCert signs with RSA only.
const signed = (name) => new soap.WSSecurityCert(fs.readFileSync(`${process.env.SOAP_KEYS}/${name}.key`),
  fs.readFileSync(`${process.env.SOAP_KEYS}/${name}.crt`), '', { hasTimeStamp: true, additionalReferences: ['wsse:BinarySecurityToken'] });

async function proxy(name, password) {
  const client = await soap.createClientAsync(`${url}?wsdl`, { forceSoap12Headers: version === '1.2' });
  const hasTimeStamp = true;
  const secure = () => auth === 'signed' ? client.setSecurity(signed(password !== secret ? 'stranger' : name === 'audit' ? 'audit-rsa' : name)) : client.setSecurity(new soap.WSSecurity(name, password, {
    passwordType: auth === 'digest' ? 'PasswordDigest' : 'PasswordText', hasTimeStamp, hasNonce: true, hasTokenCreated: true,
  }));
  const methods = client.SessionService[port];
  return (operation, request) => new Promise((resolve, reject) => {
    secure();
    methods[operation](request, (failure, answer) => (failure ? reject(failure) : resolve(answer)));
  });
}

async function faultOf(call) {
  try {
    await call;
  } catch (failure) {
    const fault = failure.root && failure.root.Envelope.Body.Fault;
    if (!fault) throw failure;
    const detail = (fault.detail || fault.Detail || {}).SessionFault || {};
    return { code: detail.code, current: detail.currentVersion, text: JSON.stringify(fault) };
  }
  throw new Error('no fault');
}
const list = (value) => (value === undefined || value === null ? [] : [].concat(value));

(async () => {
  const service = await proxy('billing', secret);
  const auditor = await proxy('audit', secret);
  const subject = `node-${version}-${auth}`;
  const odd = '<a & b>\n\ttwo ü € 🧀';
  const created = await service('CreateSession', {
    subject, kind: 'web', clientAddress: '192.0.2.7',
    attributeMap: { entry: [{ key: 'odd', value: odd }, { key: 'n', json: '5' }] },
  });
  const { session, token } = created;
  const sessionId = session.sessionId;
  check(Number(session.version) === 1 && session.state === 'active' && session.kind === 'web', 'create');
  check(session.clientAddress === '192.0.2.7', 'address');
  check(Number(created.receipt.leafIndex) >= 0 && created.receipt.leafHash.length === 64, 'receipt');
  const attributes = Object.fromEntries(list(session.attributeMap.entry).map((e) => [e.key, e.value ?? e.json]));
  check(attributes.odd === odd && attributes.n === '5', `attributes come back as they went: ${JSON.stringify(attributes)}`);
  check((await service('ValidateSession', { token })).valid === true, 'validate');
  check((await service('ValidateSession', { token: 'cfs_no' })).reason === 'unknown', 'an unknown token');
  check((await service('GetSession', { sessionId })).session.subject === subject, 'get');
  check((await service('TouchSession', { sessionId })).session.idleExpiresAt >= session.idleExpiresAt, 'touch');
  const updated = await service('UpdateSession', {
    sessionId, expectedVersion: 1, attributeMap: { entry: [{ key: 'b', json: '{"c": [1, true]}' }] }, removeKeys: { key: ['n'] },
  });
  check(list(updated.session.attributeMap.entry).map((e) => e.key).sort().join() === 'b,odd', 'update');
  const stale = await faultOf(service('UpdateSession', { sessionId, expectedVersion: 1 }));
  check(stale.code === 'VERSION_CONFLICT' && Number(stale.current) === 2, `a stale version: ${stale.text}`);
  const bound = await service('AuthenticateSession', { sessionId, subject, methods: { method: ['pwd', 'otp'] }, level: 'aal2' });
  check(bound.token !== token, 'authenticate');
  check((await service('ValidateSession', { token })).reason === 'rotated', 'the old token');
  const renewed = await service('RenewSession', { sessionId });
  check((await service('ValidateSession', { token: renewed.token })).valid === true, 'renew');
  check(list((await service('ListSessions', { subject })).sessions.session)[0].sessionId === sessionId, 'list');
  check((await service('GetReceipt', { leafIndex: renewed.receipt.leafIndex })).receiptText.includes('c2sp.org'), 'receipt text');
  check((await faultOf(service('QueryAudit', {}))).code === 'NOT_ALLOWED', 'an application does not read the log');
  const events = list((await auditor('QueryAudit', { sessionId })).events.event);
  check(events.map((e) => Number(e.version)).join() === '4,3,2,1' && events[0].protocol === 'soap', 'the log has it all');
  const ended = await service('TerminateSession', { sessionId, reason: 'logout' });
  const again = await service('TerminateSession', { sessionId, reason: 'logout' });
  check(ended.session.endReason === 'logout' && Number(again.receipt.leafIndex) === Number(ended.receipt.leafIndex), 'terminate twice');
  check((await service('GetSession', { sessionId })).session.state === 'ended', 'get after the end');
  check((await faultOf(service('TouchSession', { sessionId }))).code === 'SESSION_ENDED', 'touch after the end');
  const unknown = '0190a5c2-7c1e-7000-8000-00000000000a';
  check((await faultOf(service('GetSession', { sessionId: unknown }))).code === 'SESSION_NOT_FOUND', 'unknown');
  check((await faultOf(service('CreateSession', { kind: 'no' }))).code === 'VALIDATION_FAILED', 'a bad kind');
  await service('CreateSession', { subject });
  await service('CreateSession', { subject });
  check(Number((await service('TerminateSubjectSessions', { subject })).ended) === 2, 'log out everywhere');
  const stranger = await proxy('billing', 'not the secret, but as long');
  check((await faultOf(stranger('GetSession', { sessionId }))).text.includes('FailedAuthentication'), 'a wrong secret');
  console.log(`${count} checks hold`);
})().catch((failure) => {
  console.error(String(failure.stack || failure).slice(0, 2000));
  process.exit(1);
});
