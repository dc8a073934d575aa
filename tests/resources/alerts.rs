//! The alerts: expressions that Prometheus reads, on metrics that there are, each with a section
//! that says what to do.

use std::{collections::BTreeSet, fs};

use promql_parser::{
    parser::{self, Expr},
    util::{ExprVisitor, walk_expr},
};
use serde_json::Value;

use super::ground::root;

fn rules() -> Vec<Value> {
    let text = fs::read_to_string(root().join("charts/tenantry/files/alerts.yaml")).expect("alerts");
    let file: Value = serde_saphyr::from_str(&text).expect("YAML");
    file["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .flat_map(|group| group["rules"].as_array().cloned().expect("rules"))
        .collect()
}

fn operations() -> String {
    fs::read_to_string(root().join("docs/operations.md")).expect("docs/operations.md")
}

/// The metrics and labels that an expression asks for.
#[derive(Default)]
struct Asked {
    metrics: BTreeSet<String>,
    labels: BTreeSet<(String, String)>,
}

impl ExprVisitor for Asked {
    type Error = String;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, String> {
        let selector = match expression {
            Expr::VectorSelector(selector) => Some(selector),
            Expr::MatrixSelector(range) => Some(&range.vs),
            _ => None,
        };
        if let Some(selector) = selector {
            let name = selector.name.clone().ok_or("a selector without a name")?;
            self.labels.extend(selector.matchers.matchers.iter().map(|matcher| (name.clone(), matcher.name.clone())));
            self.metrics.insert(name);
        }
        Ok(true)
    }
}

fn asked(rule: &Value) -> Asked {
    let expression = rule["expr"].as_str().expect("an expression");
    let parsed = parser::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    let mut asked = Asked::default();
    walk_expr(&mut asked, &parsed).unwrap_or_else(|error| panic!("{expression}: {error}"));
    assert!(!asked.metrics.is_empty(), "{expression} asks for nothing");
    asked
}

/// The rows of the table of metrics in docs/operations.md: names, and the labels of each.
fn documented() -> Vec<(String, String)> {
    let text = operations();
    let rows = text.lines().filter(|line| line.starts_with("| `tenantry_"));
    rows.map(|row| {
        let mut cells = row.split('|').skip(1).map(str::trim);
        let (name, labels) = (cells.next().expect("a name"), cells.next().expect("labels"));
        (name.trim_matches('`').to_owned(), labels.to_owned())
    })
    .collect()
}

#[test]
fn expressions_ask_for_metrics_that_there_are() {
    let documented = documented();
    assert!(documented.len() >= 15, "{documented:?}");
    let rules = rules();
    assert!(rules.len() >= 10);
    for rule in &rules {
        let asked = asked(rule);
        for metric in &asked.metrics {
            assert!(
                documented.iter().any(|(name, _)| name == metric),
                "{}: docs/operations.md has no {metric}",
                rule["alert"]
            );
        }
        for (metric, label) in &asked.labels {
            let (_, labels) = documented.iter().find(|(name, _)| name == metric).expect("it is there");
            assert!(labels.contains(&format!("`{label}`")), "{}: {metric} has no label {label}", rule["alert"]);
        }
        // What the texts say of an alert has to be left by its expression.
        let expression = rule["expr"].as_str().expect("an expression");
        let texts = rule["annotations"].to_string();
        for label in texts.split("$labels.").skip(1).map(|rest| rest.split([' ', '}']).next().expect("a label")) {
            assert!(expression.contains(&format!("by ({label})")), "{}: no label {label} is left", rule["alert"]);
        }
    }
}

/// An outage that lasts must not become what it is compared with, and nothing must not be
/// compared with anything: what is asked for is there with 0.
#[test]
fn an_outage_is_told_as_long_as_it_lasts() {
    let rule = |name: &str| rules().into_iter().find(|rule| rule["alert"] == name).expect("an alert");
    let down = rule("TenantryTenantsDown")["expr"].as_str().expect("an expression").to_owned();
    assert!(!down.contains("offset"), "{down}");
    assert!(down.contains("max_over_time(") && down.contains("[6h:"), "{down}");
    // Two leaders' numbers in one scrape are not twice as many Tenants.
    assert_eq!(down.matches("sum(").count(), down.matches("sum(max by (tier)").count(), "{down}");
    assert!(asked(&rule("TenantryDatabaseAway")).metrics.contains("tenantry_database_away"));
}

#[test]
fn each_alert_has_a_severity_a_summary_and_a_section() {
    let operations = operations();
    let mut names = BTreeSet::new();
    for rule in rules() {
        let name = rule["alert"].as_str().expect("a name").to_owned();
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().expect("a severity")), "{name}");
        for annotation in ["summary", "description"] {
            assert!(
                rule["annotations"][annotation].as_str().is_some_and(|text| text.ends_with('.')),
                "{name}: {annotation}"
            );
        }
        let section = operations
            .split_once(&format!("\n### {name}\n"))
            .unwrap_or_else(|| panic!("docs/operations.md has no section {name}"));
        let section = section.1.split("\n#").next().expect("a section");
        assert!(section.contains("**Do:**"), "the section of {name} doesn't say what to do");
        assert!(names.insert(name), "an alert twice");
    }
    // And no section is about an alert that there isn't.
    let sections = operations.lines().filter_map(|line| line.strip_prefix("### Tenantry"));
    let unknown: Vec<_> = sections.filter(|name| !names.contains(&format!("Tenantry{name}"))).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
