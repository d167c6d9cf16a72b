<?php
// The scenario of `run`, with ext-soap reading the live WSDL. Arguments: URL, secret, SOAP version, text or digest.
[, $url, $secret, $version, $auth] = $argv;
$count = 0;

function check(bool $holds, string $what): void
{
    global $count;
    $count += 1;
    if (!$holds) {
        fwrite(STDERR, "does not hold: $what\n");
        exit(1);
    }
}

/** ext-soap knows nothing of WS-Security: a header for each call, because a nonce is good once. */
class Consumer extends SoapClient
{
    public string $name;
    public string $password;
    public bool $digest;

    public function __call(string $operation, array $arguments): mixed
    {
        $wsse = 'http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd';
        $wsu = 'http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd';
        $profile = 'http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0';
        $base64 = 'http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0#Base64Binary';
        $nonce = random_bytes(16);
        $created = gmdate('Y-m-d\TH:i:s\Z');
        $password = $this->digest ? base64_encode(sha1($nonce . $created . $this->password, true)) : $this->password;
        $type = $profile . ($this->digest ? '#PasswordDigest' : '#PasswordText');
        $header = "<wsse:Security xmlns:wsse=\"$wsse\" xmlns:wsu=\"$wsu\"><wsse:UsernameToken>"
            . "<wsse:Username>$this->name</wsse:Username><wsse:Password Type=\"$type\">" . htmlspecialchars($password) . '</wsse:Password>'
            . "<wsse:Nonce EncodingType=\"$base64\">" . base64_encode($nonce) . "</wsse:Nonce><wsu:Created>$created</wsu:Created>"
            . '</wsse:UsernameToken></wsse:Security>';
        $this->__setSoapHeaders(new SoapHeader($wsse, 'Security', new SoapVar($header, XSD_ANYXML), true));
        return $this->__soapCall($operation, $arguments);
    }
}

function proxy(string $name, string $password): Consumer
{
    global $url, $version, $auth;
    // ext-soap takes the first port of the WSDL whatever the version: that is the one for SOAP 1.1, and the address is the same.
    $client = new Consumer("$url?wsdl", [
        'soap_version' => $version === '1.1' ? SOAP_1_1 : SOAP_1_2,
        'exceptions' => true,
        'cache_wsdl' => WSDL_CACHE_NONE,
        'features' => SOAP_SINGLE_ELEMENT_ARRAYS,
    ]);
    [$client->name, $client->password, $client->digest] = [$name, $password, $auth === 'digest'];
    return $client;
}

function fault_of(callable $call): SoapFault
{
    try {
        $call();
    } catch (SoapFault $fault) {
        return $fault;
    }
    check(false, 'no fault');
}

$code = fn (SoapFault $fault): string => $fault->detail->SessionFault->code ?? $fault->faultcode;
$service = proxy('billing', $secret);
$auditor = proxy('audit', $secret);
$subject = "php-$version-$auth";
$odd = "<a & b>\n\ttwo ü € 🧀";
$created = $service->CreateSession([
    'subject' => $subject, 'kind' => 'web', 'clientAddress' => '192.0.2.7',
    'attributeMap' => ['entry' => [['key' => 'odd', 'value' => $odd], ['key' => 'n', 'json' => '5']]],
]);
[$session, $token] = [$created->session, $created->token];
$id = ['sessionId' => $session->sessionId];
check($session->version === 1 && $session->state === 'active' && $session->kind === 'web', 'create');
check($session->clientAddress === '192.0.2.7', 'address');
check($created->receipt->leafIndex >= 0 && strlen($created->receipt->leafHash) === 64, 'receipt');
$attributes = [];
foreach ($session->attributeMap->entry as $entry) {
    $attributes[$entry->key] = $entry->value ?? $entry->json;
}
check($attributes == ['odd' => $odd, 'n' => '5'], 'attributes come back as they went: ' . json_encode($attributes));
check($service->ValidateSession(['token' => $token])->valid === true, 'validate');
check($service->ValidateSession(['token' => 'cfs_no'])->reason === 'unknown', 'an unknown token');
check($service->GetSession($id)->session->subject === $subject, 'get');
check($service->TouchSession($id)->session->idleExpiresAt >= $session->idleExpiresAt, 'touch');
$updated = $service->UpdateSession($id + [
    'expectedVersion' => 1, 'attributeMap' => ['entry' => [['key' => 'b', 'json' => '{"c": [1, true]}']]], 'removeKeys' => ['key' => ['n']],
]);
check(array_map(fn ($entry) => $entry->key, $updated->session->attributeMap->entry) == ['b', 'odd'], 'update');
$stale = fault_of(fn () => $service->UpdateSession($id + ['expectedVersion' => 1]));
check($code($stale) === 'VERSION_CONFLICT' && $stale->detail->SessionFault->currentVersion == 2, 'a stale version');
$bound = $service->AuthenticateSession($id + ['subject' => $subject, 'methods' => ['method' => ['pwd', 'otp']], 'level' => 'aal2']);
check($bound->token !== $token, 'authenticate');
check($service->ValidateSession(['token' => $token])->reason === 'rotated', 'the old token');
$renewed = $service->RenewSession($id);
check($service->ValidateSession(['token' => $renewed->token])->valid === true, 'renew');
check($service->ListSessions(['subject' => $subject])->sessions->session[0]->sessionId === $session->sessionId, 'list');
check(str_contains($service->GetReceipt(['leafIndex' => $renewed->receipt->leafIndex])->receiptText, 'c2sp.org'), 'receipt text');
check($code(fault_of(fn () => $service->QueryAudit([]))) === 'NOT_ALLOWED', 'an application does not read the log');
$events = $auditor->QueryAudit($id)->events->event;
check(array_map(fn ($event) => $event->version, $events) == [4, 3, 2, 1] && $events[0]->protocol === 'soap', 'the log has it all');
$ended = $service->TerminateSession($id + ['reason' => 'logout']);
$again = $service->TerminateSession($id + ['reason' => 'logout']);
check($ended->session->endReason === 'logout' && $again->receipt == $ended->receipt, 'terminate twice');
check($service->GetSession($id)->session->state === 'ended', 'get after the end');
check($code(fault_of(fn () => $service->TouchSession($id))) === 'SESSION_ENDED', 'touch after the end');
$unknown = ['sessionId' => '0190a5c2-7c1e-7000-8000-00000000000a'];
check($code(fault_of(fn () => $service->GetSession($unknown))) === 'SESSION_NOT_FOUND', 'unknown');
check($code(fault_of(fn () => $service->CreateSession(['kind' => 'no']))) === 'VALIDATION_FAILED', 'a bad kind');
$service->CreateSession(['subject' => $subject]);
$service->CreateSession(['subject' => $subject]);
check($service->TerminateSubjectSessions(['subject' => $subject])->ended === 2, 'log out everywhere');
$stranger = proxy('billing', 'not the secret, but as long');
$refused = fault_of(fn () => $stranger->GetSession($id));
$said = $refused->faultcode . ($refused->_name ?? '') . ($stranger->__getLastResponse() ?? '') . $refused->getMessage();
check(str_contains($said, 'FailedAuthentication') || str_contains($said, 'could not be authenticated'), "a wrong secret: $said");
echo "$count checks hold\n";
