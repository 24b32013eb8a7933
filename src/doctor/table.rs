//! The findings for people, and as JSON for programs.

use super::finding::{Finding, Status};
use crate::dist::ranks;
use crate::error::{Error, Result};
use serde::Serialize;

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This program's version.
    pub trainer: String,
    /// Number of ranks.
    pub ranks: usize,
    /// Their hosts, each once.
    pub hosts: Vec<String>,
    /// How long it took.
    pub seconds: f64,
    /// The worst status of all.
    pub verdict: Status,
    /// From good to bad.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The JSON that `--json` prints.
    pub fn json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        Ok(text.map_err(|e| Error::bug(format!("the report in JSON: {e}")))? + "\n")
    }

    /// A table, the worst at the bottom, where the eye is.
    pub fn table(&self) -> String {
        let widest = self.findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
        let mut text = String::new();
        for finding in &self.findings {
            let place = self.place(finding);
            let (status, check) = (finding.status.name(), &finding.check);
            let pad = " ".repeat(9 + widest + 2);
            let found = finding.found.replace('\n', &format!("\n{pad}"));
            text += &format!("{status:<9}{check:<widest$}  {found}{place}\n");
            for (word, said) in [("cause", &finding.cause), ("remedy", &finding.remedy)] {
                if let Some(said) = said {
                    let said = said.replace('\n', &format!("\n{pad}        "));
                    text += &format!("{pad}{word:<8}{said}\n");
                }
            }
        }
        text + &self.last_line()
    }

    /// ` (ranks 0-3 on n1, n2)`, where not all ranks found it.
    fn place(&self, finding: &Finding) -> String {
        if finding.ranks.is_empty() || finding.ranks.len() == self.ranks {
            return String::new();
        }
        let numbers: Vec<usize> = finding.ranks.iter().copied().collect();
        let hosts: Vec<&str> = finding.hosts.iter().map(String::as_str).collect();
        let hosts = match hosts.len() {
            0..=4 => hosts.join(", "),
            n => format!("{} and {} more", hosts[..3].join(", "), n - 3),
        };
        format!(" ({} on {hosts})", ranks(&numbers))
    }

    fn last_line(&self) -> String {
        let number = |status| self.findings.iter().filter(|f| f.status == status).count();
        let parts: Vec<String> = [
            (Status::Ok, "ok"),
            (Status::Note, "to note"),
            (Status::Warning, "to mend"),
            (Status::Stops, "that would stop a run"),
        ]
        .into_iter()
        .filter(|(status, _)| number(*status) > 0)
        .map(|(status, words)| format!("{} {words}", number(status)))
        .collect();
        format!("{}, in {:.1} s\n", parts.join(", "), self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            trainer: "0.1.0".into(),
            ranks: 3,
            hosts: vec!["a".into(), "b".into()],
            seconds: 1.25,
            verdict: Status::Stops,
            findings: vec![
                Finding::ok("clock", "agrees").on(0, "a").on(1, "a").on(2, "b"),
                Finding::stops("memory", "1 MB")
                    .cause("limit")
                    .remedy("more")
                    .on(1, "a")
                    .on(2, "b"),
            ],
        }
    }

    #[test]
    fn for_people() {
        let wanted = "\
ok       clock   agrees
STOPS    memory  1 MB (ranks 1, 2 on a, b)
                 cause   limit
                 remedy  more
1 ok, 1 that would stop a run, in 1.2 s
";
        assert_eq!(report().table(), wanted);
    }

    #[test]
    fn for_programs() {
        let value: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        assert_eq!(value["verdict"], "stops");
        assert_eq!(value["findings"][1]["ranks"], serde_json::json!([1, 2]));
        assert_eq!(value["findings"][0]["cause"], serde_json::Value::Null);
    }
}
