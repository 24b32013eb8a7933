//! Where nothing is wrong, doctor says so, in words and in JSON, and leaves everything as it was.

use super::common::CONFIG;
use super::{ONE, Scratch};
use serde_json::Value;

/// Alone, as two ranks, and as more ranks than cores.
#[test]
fn nothing_to_find() {
    let _alone = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let scratch = Scratch::new("healthy");
    let before = scratch.find("");
    for ranks in [1, 2, 8] {
        let (m, json) = (ranks.max(2), if ranks == 2 { " --json" } else { "" });
        let args = format!("doctor c.yaml --set training.micro_batches_per_step={m}{json}");
        let outcome = match ranks {
            1 => scratch.trainer(&args),
            _ => scratch.mpirun(ranks, &args),
        };
        assert_eq!(outcome.code, 0, "{}{}", outcome.out, outcome.err);
        assert!(outcome.seconds < 90.0, "{} s", outcome.seconds);
        match ranks {
            2 => json_of_two(&outcome.out),
            _ => assert!(
                outcome.out.contains("configuration, data and model fit"),
                "{}",
                outcome.out
            ),
        }
    }
    assert_eq!(scratch.find(""), before);
    assert_eq!(scratch.read("c.yaml"), CONFIG);
}

fn json_of_two(text: &str) {
    let report: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(report["ranks"], 2);
    assert_eq!(report["hosts"].as_array().unwrap().len(), 1);
    assert_ne!(report["verdict"], "stops");
    let findings = report["findings"].as_array().unwrap();
    let checks: Vec<&str> = findings.iter().map(|f| f["check"].as_str().unwrap()).collect();
    let wanted =
        ["launcher", "versions", "cores", "memory", "limits", "GPU", "clock", "all-reduce"];
    for check in wanted.iter().chain(&["files", "shared files", "configuration"]) {
        assert!(checks.contains(check), "{check} in {checks:?}");
    }
    for finding in findings {
        let trouble = ["warning", "stops"].contains(&finding["status"].as_str().unwrap());
        assert!(
            !trouble || finding["cause"].is_string() && finding["remedy"].is_string(),
            "{finding}"
        );
        assert!(!finding["ranks"].as_array().unwrap().is_empty(), "{finding}");
    }
}
