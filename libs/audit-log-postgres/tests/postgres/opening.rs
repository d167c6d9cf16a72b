//! What is refused when the log is opened, and with which words.

use std::error::Error;

use audit_log::conformance::{Draft, check_log, commit, next_batch};
use audit_log::{AppendError, LogReader, LogWriter};
use audit_log_postgres::{OpenError, migrate};

use crate::support::Database;

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[tokio::test]
async fn a_database_without_the_schema_is_refused() {
    let database = Database::empty().await;
    let config = audit_log_postgres::PostgresConfig { url: database.superuser(), ..database.config() };
    let failure = audit_log_postgres::PostgresLog::connect(config).await.unwrap_err();
    assert!(matches!(failure, OpenError::Schema { .. }), "{failure:?}");
    assert!(
        failure.to_string().contains("missing") && failure.to_string().contains("counterfoil migrate"),
        "{failure}"
    );
}

/// A newer schema says itself whether it still serves this program: while an upgrade rolls, both run.
#[tokio::test]
async fn a_schema_of_another_version_is_refused_unless_it_serves_this_program() {
    let database = Database::new().await;
    database.run("UPDATE counterfoil.settings SET schema_version = 4").await;
    commit(&database.open().await, vec![Draft::new(1)]).await;
    database.run("UPDATE counterfoil.settings SET serves_from = 4").await;
    let failure = database.try_open().await.unwrap_err();
    assert!(matches!(failure, OpenError::Schema { .. }), "{failure:?}");
    assert!(failure.to_string().contains("version 4") && failure.to_string().contains("needs version 3"), "{failure}");
}

#[tokio::test]
async fn a_role_that_is_not_the_writer_is_refused() {
    let database = Database::new().await;
    database.run(&format!("CREATE ROLE {}_stranger LOGIN PASSWORD 'secret'", database.name)).await;
    for role in ["stranger", "auditor"] {
        let config = audit_log_postgres::PostgresConfig { url: database.url(role), ..database.config() };
        let failure = audit_log_postgres::PostgresLog::connect(config).await.unwrap_err();
        assert!(matches!(failure, OpenError::NotWriter { .. }), "{role}: {failure:?}");
        assert!(failure.to_string().contains("GRANT counterfoil_writer"), "{failure}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_said_so() {
    let config = audit_log_postgres::PostgresConfig {
        url: "postgres://nobody:hunter2@127.0.0.1:1/none".to_owned(),
        connections: 1,
        statement_timeout: std::time::Duration::from_millis(300),
        application_name: "test".to_owned(),
        require_standby: false,
    };
    assert!(!format!("{config:?}").contains("hunter2"));
    let failure = audit_log_postgres::PostgresLog::connect(config).await.unwrap_err();
    assert!(matches!(failure, OpenError::Database(_)), "{failure:?}");
    assert!(!chain(&failure).contains("hunter2"), "{}", chain(&failure));
}

#[tokio::test]
async fn synchronous_commit_that_promises_too_little_is_refused() {
    let database = Database::new().await;
    let writer = format!("{}_writer", database.name);
    for setting in ["off", "local"] {
        database.run(&format!("ALTER ROLE {writer} SET synchronous_commit = {setting}")).await;
        let failure = database.try_open().await.unwrap_err();
        assert!(matches!(failure, OpenError::NotDurable { .. }), "{failure:?}");
        assert!(failure.to_string().contains(&format!("synchronous_commit is {setting}")), "{failure}");
    }
    for setting in ["on", "remote_apply"] {
        database.run(&format!("ALTER ROLE {writer} SET synchronous_commit = {setting}")).await;
        commit(&database.open().await, vec![Draft::new(1)]).await;
    }
}

/// The tests' server has no standby, and says so.
#[tokio::test]
async fn a_standby_that_is_required_and_not_there_is_asked_for() {
    let database = Database::new().await;
    let config = audit_log_postgres::PostgresConfig { require_standby: true, ..database.config() };
    let failure = audit_log_postgres::PostgresLog::connect(config).await.unwrap_err();
    assert!(matches!(failure, OpenError::NoStandby(_)), "{failure:?}");
    assert!(failure.to_string().contains("synchronous_standby_names"), "{failure}");
}

/// Anybody may set it for himself, at any time: so each append looks.
#[tokio::test]
async fn synchronous_commit_lowered_later_is_refused_by_the_append_itself() {
    let database = Database::new().await;
    let writer = format!("{}_writer", database.name);
    let log = database.open().await;
    // The connection that appends is made by the first append.
    database.run(&format!("ALTER ROLE {writer} SET synchronous_commit = off")).await;
    let batch = next_batch(&log, vec![Draft::new(1)]).await;
    let failure = log.append(&batch).await.unwrap_err();
    assert!(matches!(failure, AppendError::NotDone(_)), "{failure:?}");
    assert!(chain(&failure).contains("synchronous_commit is off"), "{}", chain(&failure));
    assert_eq!(log.head().await.unwrap().size(), batch.expected);

    database.run(&format!("ALTER ROLE {writer} RESET synchronous_commit")).await;
    let _committed = log.append(&batch).await.unwrap();
    assert_eq!(check_log(&log).await.len(), 1);
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let database = Database::new().await;
    commit(&database.open().await, vec![Draft::new(1)]).await;
    migrate(&database.superuser()).await.unwrap();
    assert_eq!(check_log(&database.open().await).await.len(), 1);
}

/// As a role that may create schemas, but no roles; and which nobody has made a member of the owner.
#[tokio::test]
async fn a_migration_without_the_rights_says_which_are_missing() {
    // So that the groups are there, whatever runs first.
    let _other = Database::new().await;
    let database = Database::empty().await;
    let owner = format!("{}_owner", database.name);
    database
        .run(&format!(
            "CREATE ROLE {owner} LOGIN PASSWORD 'secret';
             GRANT CREATE ON DATABASE {0} TO {owner};
             GRANT CREATE ON SCHEMA public TO {owner}",
            database.name
        ))
        .await;
    let failure = migrate(&database.url("owner")).await.unwrap_err();
    assert!(chain(&failure).contains("counterfoil_owner"), "{}", chain(&failure));
    // What it asks for is enough: no superuser is needed.
    database.run(&format!("GRANT counterfoil_owner TO {owner}")).await;
    migrate(&database.url("owner")).await.unwrap();
    // Its roles cannot be dropped while they own something here.
    database.run(&format!("REASSIGN OWNED BY {owner} TO CURRENT_USER; DROP OWNED BY {owner}")).await;
}
