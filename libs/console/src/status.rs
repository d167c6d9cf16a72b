//! How the service does, for operators: sizes and progress. Nothing of what anybody keeps in it, and nothing of other realms.

use access::Permission;
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::query;
use maud::{Markup, html};
use session_model::Policy;

use crate::Console;
use crate::chart::thousands;
use crate::page::{self, Section};
use crate::visit::admitted;

pub(crate) async fn show(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    admitted(&console, &request, Permission::SeeStatus, async |visit, caller| {
        query(&request, [])?;
        let service = console.sessions.of(&caller.realm);
        let (reflected, size) = service.progress();
        let searchable = console.audit.of(&caller.realm).archive.projector().status().size;
        let silence = service.log_silence();
        let policy = service.policy(&caller.realm)?;
        let main = html! {
            h1 { "Status" }
            p { "Of this node, as it was when the page was made." }
            table.pairs {
                tr { th scope="row" { "Changes can be recorded" } td {
                    @if service.is_available() { span.good { "yes" } } @else { span.bad { "no: the log does not take them" } }
                } }
                tr { th scope="row" { "Log last heard of" } td { (silence.as_millis()) " ms ago" } }
                tr { th scope="row" { "Entries in the log" } td { (thousands(size.0)) } }
                tr { th scope="row" { "Waiting to be recorded" } td { (service.waiting()) } }
                tr { th scope="row" { "Sessions reflect" } td { (progress(reflected.0, size.0)) } }
                tr { th scope="row" { "Searches reflect" } td { (progress(searchable.0, size.0)) } }
                tr { th scope="row" { "Node" } td { code { (service.node_caller(&caller.realm).actor.id) } } }
                tr { th scope="row" { "Program" } td { "counterfoil " (env!("CARGO_PKG_VERSION")) } }
            }
            section aria-labelledby="realm" {
                h2 #realm { "Realm " (caller.realm) }
                (demands(policy))
            }
        };
        Ok(page::shown(&console, visit, "Status", Section::Status, &main))
    })
    .await
}

fn progress(reflected: u64, size: u64) -> Markup {
    html! {
        (thousands(reflected.min(size))) " of them "
        @if reflected < size { span.dim { "(" (thousands(size - reflected)) " behind)" } }
        progress max=(size.max(1)) value=(reflected.min(size)) {}
    }
}

fn demands(policy: &Policy) -> Markup {
    html! {
        table.pairs {
            tr { th scope="row" { "Idle timeout" } td { (policy.idle_timeout) } }
            tr { th scope="row" { "Absolute timeout" } td { (policy.absolute_timeout) } }
            tr { th scope="row" { "Token renewed after" } td { (policy.renewal_interval) } }
            tr { th scope="row" { "Open sessions a subject" } td { (policy.sessions_per_subject) } }
            tr { th scope="row" { "Reads of a session are entries" } td { (if policy.audited_reads { "yes" } else { "no" }) } }
            tr { th scope="row" { "Requests a second and key" } td {
                @if policy.requests_per_second == 0 { "no limit" } @else { (policy.requests_per_second) }
            } }
        }
    }
}
