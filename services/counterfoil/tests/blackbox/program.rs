//! A running `counterfoil serve`, and a client to ask it with.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) const APPLICATION: &str = "cfk_application_application_application_app1234";
pub(crate) const AUDITOR: &str = "cfk_auditor_auditor_auditor_auditor_auditor1234";
pub(crate) const OPERATOR: &str = "cfk_operator_operator_operator_operator_ope1234";

/// Where a program keeps what it keeps; outlives the program.
pub(crate) struct Home {
    pub(crate) folder: TempDir,
    pub(crate) environment: Vec<(String, String)>,
}

impl Home {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut environment = Vec::new();
        for (name, key) in [("APPLICATION", APPLICATION), ("AUDITOR", AUDITOR), ("OPERATOR", OPERATOR)] {
            let file = folder.path().join(name);
            std::fs::write(&file, format!("{key}\n")).unwrap();
            environment.push((format!("BOOTSTRAP__{name}_KEY_FILE"), file.display().to_string()));
        }
        Self { folder, environment }
    }

    /// The same keys and data once more, to be configured differently.
    #[allow(dead_code, reason = "this file is shared, and not every suite needs it")]
    pub(crate) fn over(other: &Self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut environment = other.environment.clone();
        environment.push(("DATA_DIR".to_owned(), other.data().display().to_string()));
        Self { folder, environment }
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.environment.push((key.to_owned(), value.into()));
        self
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_counterfoil"));
        command.args(arguments).env("COUNTERFOIL__DATA_DIR", self.data()).env("NO_COLOR", "1");
        for (key, value) in &self.environment {
            command.env(format!("COUNTERFOIL__{key}"), value);
        }
        command
    }

    /// Runs a command to its end; answers whether it succeeded and what it said.
    pub(crate) fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command(arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    }

    pub(crate) fn start(&self) -> Program {
        let log = self.folder.path().join("stderr");
        let errors = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut child = self
            .command(&["serve"])
            .env("COUNTERFOIL__SERVER__LISTEN", "127.0.0.1:0")
            .env("COUNTERFOIL__MANAGEMENT__LISTEN", "127.0.0.1:0")
            .env("COUNTERFOIL__LOGGING__LEVEL", "debug")
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut next = |what: &str| match lines.next() {
            Some(Ok(line)) => line.strip_prefix(what).unwrap_or_else(|| panic!("{line}")).to_owned(),
            other => panic!("it did not start: {other:?}\n{}", std::fs::read_to_string(&log).unwrap()),
        };
        let base = next("listening on ");
        let management = next("management on ");
        Program { child, base, management, agent: agent() }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        // Where an answer sends to is for the test to see.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_global(Some(Duration::from_secs(30)))
        .build()
        .new_agent()
}

pub(crate) struct Program {
    child: Child,
    pub(crate) base: String,
    pub(crate) management: String,
    agent: ureq::Agent,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|failure| panic!("{failure}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
    }
}

impl Program {
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Answer, ureq::Error> {
        let main = ["/v1", "/soap", "/openapi", "/console"].iter().any(|prefix| path.starts_with(prefix));
        let base = if main { &self.base } else { &self.management };
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{base}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = match body {
            Some(body) => self.agent.run(request.body(body.to_vec())?)?,
            None => self.agent.run(request.body(())?)?,
        };
        let mut bytes = Vec::new();
        response.body_mut().as_reader().read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Answer { status: response.status().as_u16(), headers: response.headers().clone(), text })
    }

    pub(crate) fn json(&self, key: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        let bearer = format!("Bearer {key}");
        let media_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let bytes = body.map(|body| body.to_string().into_bytes());
        let mut headers = vec![("Authorization", bearer.as_str())];
        if bytes.is_some() {
            headers.push(("Content-Type", media_type));
        }
        self.ask(method, path, &headers, bytes.as_deref()).unwrap()
    }

    pub(crate) fn app(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.json(APPLICATION, method, path, body)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Tells it to stop, as an orchestrator would, and waits until it has.
    pub(crate) fn stop(mut self) {
        let told = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(told.success());
        let began = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < Duration::from_secs(30), "it does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(self.child.wait().unwrap().success());
    }

    pub(crate) fn until_ready(&self) {
        let began = Instant::now();
        while self.ask("GET", "/readyz", &[], None).unwrap().status != 200 {
            assert!(began.elapsed() < Duration::from_secs(30), "it does not become ready");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Gone already where a test has stopped it.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// A database of its own on the tests' PostgreSQL server, migrated; dropped with the cluster.
pub(crate) fn database(home: &Home) -> String {
    let server = std::env::var("TEST_DATABASE_URL")
        .unwrap_or_else(|_| panic!("these tests need PostgreSQL and Redis: run them with ./test"));
    let name = format!(
        "blackbox_{}_{}",
        std::process::id(),
        home.folder.path().display().to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "").to_lowercase()
    );
    let made = Command::new("psql").args([&server, "-qc", &format!("CREATE DATABASE {name}")]).status().unwrap();
    assert!(made.success());
    let (base, _) = server.rsplit_once('/').unwrap();
    format!("{base}/{name}")
}

pub(crate) fn redis() -> String {
    std::env::var("TEST_REDIS_URL")
        .unwrap_or_else(|_| panic!("these tests need PostgreSQL and Redis: run them with ./test"))
}

/// Every file below a folder, with what it holds.
pub(crate) fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found
}
