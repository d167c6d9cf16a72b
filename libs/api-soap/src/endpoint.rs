//! The endpoint: a message over HTTP, and the description.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Problem, ProblemCode, Trace, answer, has_bearer};
use session_model::{LeafIndex, Protocol};

use crate::addressing::{self, Echo};
use crate::envelope::{self, Envelope, Version};
use crate::fault::{self, Fault};
use crate::operation::Operation;
use crate::perform::{Asked, perform};
use crate::security::{self, Known, PasswordText, Refused};
use crate::writer::Xml;
use crate::{NAMESPACE, SchemaLocation, Soap, SoapApi, wsdl, xsd};

/// Bytes a message may have.
pub const MAX_BODY: usize = 256 << 10;

/// Adds the routes.
pub fn configure(config: &mut web::ServiceConfig) {
    config.service(
        web::resource("/soap/v1")
            .route(web::post().to(call))
            .route(web::get().to(describe))
            .default_service(web::route().to(wrong_method)),
    );
}

async fn wrong_method(request: HttpRequest) -> HttpResponse {
    let problem = Problem::new(ProblemCode::MethodNotAllowed, "POST a message, or GET ?wsdl");
    answer(&request, Err(problem.with(header::ALLOW, "GET, POST")))
}

/// `?wsdl`, `?wsdl&soap=1.1`, `?xsd=1`; names in any case, as toolkits write them.
async fn describe(api: web::Data<SoapApi>, request: HttpRequest) -> HttpResponse {
    let query = request.query_string().to_ascii_lowercase();
    let has = |wanted: &str| query.split('&').any(|pair| pair == wanted || pair.strip_suffix('=') == Some(wanted));
    let text = if has("wsdl") {
        let soap = if has("soap=1.1") { Soap::Only11 } else { Soap::Both };
        wsdl(soap, SchemaLocation::Endpoint(&api.public_url), &api.public_url)
    } else if has("xsd=1") || has("xsd") {
        xsd().to_owned()
    } else {
        return wrong_method(request).await;
    };
    HttpResponse::Ok().content_type("text/xml; charset=utf-8").body(text)
}

/// What is known of a message when it fails.
struct Context {
    version: Version,
    echo: Echo,
}

async fn call(api: web::Data<SoapApi>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let (version, charset) = match media_type(&request) {
        Ok(known) => known,
        Err(problem) => return answer(&request, Err(problem)),
    };
    let body = match payload.to_bytes_limited(MAX_BODY).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let broken = Problem::new(ProblemCode::MalformedRequest, "the body broke off or is wrongly framed");
            return answer(&request, Err(broken));
        }
        Err(_) => {
            return answer(&request, Err(Problem::new(ProblemCode::BodyTooLarge, format!("at most {MAX_BODY} bytes"))));
        }
    };
    let trace = Trace::of(&request);
    let mut context = Context { version, echo: Echo::default() };
    match process(&api, &request, &body, charset.as_deref(), &mut context).await {
        Ok((xml, place)) => respond(StatusCode::OK, context.version, &trace, xml, place, None),
        Err(fault) => {
            let (version, xml) = fault.envelope(context.version, &context.echo, trace.id());
            // 500 for every fault, of the sender or ours: anything else is lost on half of the toolkits (notes in docs/soap.md).
            respond(StatusCode::INTERNAL_SERVER_ERROR, version, &trace, xml, None, fault.problem())
        }
    }
}

fn respond(
    status: StatusCode,
    version: Version,
    trace: &Trace,
    xml: String,
    place: Option<LeafIndex>,
    problem: Option<ProblemCode>,
) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    response
        .insert_header((header::CONTENT_TYPE, HeaderValue::from_static(version.content_type())))
        .insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .insert_header(("traceparent", trace.parent()));
    if let Some(index) = place {
        response.insert_header(("counterfoil-index", index.0.to_string()));
    }
    if problem.is_some_and(|code| code.soap().retryable) {
        response.insert_header((header::RETRY_AFTER, "1"));
    }
    response.body(xml)
}

/// Which SOAP the media type speaks of, until the envelope says so itself; and the charset, if it names one. Read by hand: toolkits
/// leave out quotes, blanks and parameters, or add a semicolon, and all of them mean well.
fn media_type(request: &HttpRequest) -> Result<(Version, Option<String>), Problem> {
    let headers = request.headers();
    let coding = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or("identity");
    if !coding.trim().eq_ignore_ascii_case("identity") {
        return Err(Problem::new(ProblemCode::UnsupportedMediaType, "send the message without a content coding"));
    }
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut parts = given.split(';').map(str::trim);
    let essence = parts.next().unwrap_or("");
    let version = if essence.eq_ignore_ascii_case("text/xml") {
        Version::Soap11
    } else if essence.eq_ignore_ascii_case("application/soap+xml") {
        Version::Soap12
    } else {
        let wanted = "send text/xml (SOAP 1.1) or application/soap+xml (SOAP 1.2)";
        return Err(Problem::new(ProblemCode::UnsupportedMediaType, wanted));
    };
    let charset = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        name.trim().eq_ignore_ascii_case("charset").then(|| value.to_owned())
    });
    Ok((version, charset))
}

async fn process(
    api: &SoapApi,
    request: &HttpRequest,
    body: &[u8],
    charset: Option<&str>,
    context: &mut Context,
) -> Result<(String, Option<LeafIndex>), Fault> {
    let text = envelope::decode(body, charset)?;
    envelope::scan(&text)?;
    let document = envelope::parse(&text)?;
    context.version = envelope::version(&document)?;
    let envelope = Envelope::read(&document, context.version)?;
    let addressed = addressing::read(&envelope.headers)?;
    let mut message_id = addressed.as_ref().and_then(|addressed| addressed.message_id.clone());
    context.echo.addressing = addressed;
    let security = security::read(&envelope.headers)?;
    let now = api.service.now();
    if let Some(security) = &security {
        context.echo.timestamp = security.has_timestamp().then_some(now);
        security.check_time(now)?;
    }
    let operation = operation(&envelope)?;

    let holder = match &security {
        Some(security) if security.has_credential() => {
            if has_bearer(request) {
                let two = "a message has one credential: a user name token, a signature or an API key";
                return Err(Fault::security(fault::SecurityCode::InvalidSecurity, two));
            }
            let text_allowed = api.password_text == PasswordText::Always || request.app_config().secure();
            let (consumers, certificates) = (&*api.consumers, &*api.certificates);
            let known = Known { consumers, certificates, gate: &api.gate, nonces: &*api.nonces, now, text_allowed };
            let who = security.authenticate(envelope.body, &known).await.map_err(|Refused { fault, reason }| {
                api.gate.refused(request, reason);
                fault
            })?;
            api.gate.count(request, &who.holder)?;
            // Anybody on the way could have put in what is not signed.
            message_id = message_id.filter(|(_, header)| who.vouches_for(*header));
            who.holder
        }
        Some(_) | None => api.gate.holder(request).map_err(|problem| match problem.code() {
            ProblemCode::CredentialRequired => security::failed(),
            _ => problem.into(),
        })?,
    };
    let mut admitted = api.gate.admit_holder(request, &holder, operation.permission(), Protocol::Soap)?;
    let detail = &mut admitted.caller.detail;
    detail.insert("operation".to_owned(), operation.name().to_owned());
    if let Some((id, _)) = &message_id {
        detail.insert("message_id".to_owned(), addressing::fact(id));
    }

    let source = text.get(envelope.request.range()).unwrap_or_default().as_bytes();
    let asked = Asked { request, admitted, operation, element: envelope.request, source };
    let mut xml = Xml::with_capacity(2_048);
    fault::begin(&mut xml, context.version);
    fault::header(&mut xml, &context.echo, &format!("{NAMESPACE}/{}Response", operation.name()), "");
    xml.open("soap:Body");
    let place = perform(api, &asked, &mut xml).await?;
    xml.close("soap:Body").close("soap:Envelope");
    Ok((xml.into_string(), place))
}

/// The operation by the child of the body, and nothing else: a header that names another could be a lie (Basic Profile R1127).
fn operation(envelope: &Envelope<'_, '_>) -> Result<Operation, Fault> {
    let name = envelope.request.tag_name();
    let operation = (name.namespace() == Some(NAMESPACE)).then(|| Operation::named(name.name())).flatten();
    operation.ok_or_else(|| {
        Problem::new(ProblemCode::ValidationFailed, "the Body's child is no operation of urn:counterfoil:session:v1")
            .into()
    })
}
