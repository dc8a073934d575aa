//! Statements made of text: quoting, and scripts that are one transaction and one message.

use postgres_protocol::escape;

/// An identifier, quoted.
pub(super) fn ident(name: &str) -> String {
    escape::escape_identifier(name)
}

/// Several identifiers, quoted, with commas between.
pub(super) fn idents<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| ident(name.as_ref())).collect();
    names.join(", ")
}

/// A text, quoted. Also a password's verifier.
pub(super) fn literal(text: &str) -> String {
    escape::escape_literal(text).trim_start().to_owned()
}

/// A text or NULL.
pub(super) fn optional(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "NULL".to_owned(), |text| literal(&text.to_string()))
}

/// An array of texts.
pub(super) fn texts<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| literal(item.as_ref())).collect();
    format!("ARRAY[{}]::text[]", items.join(", "))
}

/// Who runs a transaction in a database of the operator's. It is given up where a later leader
/// has been, or where another cluster has taken the database over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fence<'a> {
    /// The leader's number; 0 where there is no election.
    pub(super) number: u64,
    /// Whose the database must be.
    pub(super) cluster: &'a str,
}

impl Fence<'_> {
    /// The statement that checks it. Whose the database is stands in a row that is locked, and is
    /// read after the lock was had: who takes it over waits, or is seen. It is no function of
    /// schema `tenantry`, so that it holds whichever version of that a database has.
    fn statement(self) -> String {
        let number = self.number;
        let hold = if number > 0 { format!("PERFORM tenantry.hold_fence({number}); ") } else { String::new() };
        let body = format!(
            "BEGIN {hold}PERFORM FROM tenantry.database WHERE cluster_id = {} FOR SHARE; IF NOT FOUND THEN RAISE EXCEPTION \
             USING MESSAGE = 'the database is another cluster''s by now: nothing is changed in it', ERRCODE = 'TN011'; END IF; END",
            literal(self.cluster)
        );
        format!("DO {}", literal(&body))
    }
}

/// Statements that succeed or fail together. They travel in one message.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    statements: Vec<String>,
}

impl Script {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds a statement, without a semicolon at its end.
    pub(super) fn add(&mut self, statement: impl Into<String>) -> &mut Self {
        self.statements.push(statement.into());
        self
    }

    /// Adds a statement where there is one.
    pub(super) fn add_some(&mut self, statement: Option<String>) -> &mut Self {
        self.statements.extend(statement);
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// How many statements it sends.
    pub(super) fn len(&self) -> u64 {
        self.statements.len() as u64
    }

    /// The text of a transaction that runs them, after the fence is checked where there is one.
    pub(super) fn transaction(&self, fence: Option<Fence<'_>>) -> (String, u64) {
        let mut text = String::from("BEGIN;\n");
        let mut count = self.len() + 2;
        if let Some(fence) = fence {
            text.push_str(&fence.statement());
            text.push_str(";\n");
            count += 1;
        }
        for statement in &self.statements {
            text.push_str(statement);
            text.push_str(";\n");
        }
        text.push_str("COMMIT");
        (text, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_whatever_is_inside() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\b"), "E'a\\\\b'");
        assert_eq!(texts(["a", "b'c"]), "ARRAY['a', 'b''c']::text[]");
        assert_eq!(texts(Vec::<String>::new()), "ARRAY[]::text[]");
    }

    #[test]
    fn a_script_is_one_transaction_behind_the_fence() {
        let mut script = Script::new();
        script.add("SELECT 1").add("SELECT 2");
        let (text, count) = script.transaction(Some(Fence { number: 7, cluster: "c-1" }));
        let (fence, rest) = text.split_once(";\nSELECT 1").expect("statements");
        assert!(fence.starts_with("BEGIN;\nDO 'BEGIN PERFORM tenantry.hold_fence(7); "), "{fence}");
        assert!(fence.contains("WHERE cluster_id = ''c-1'' FOR SHARE"), "{fence}");
        assert_eq!((rest, count), (";\nSELECT 2;\nCOMMIT", 5));
        let (text, _) = script.transaction(Some(Fence { number: 0, cluster: "c-1" }));
        assert!(!text.contains("hold_fence") && text.contains("c-1"), "without an election: {text}");
        assert_eq!(script.transaction(None), ("BEGIN;\nSELECT 1;\nSELECT 2;\nCOMMIT".to_owned(), 4));
    }
}
