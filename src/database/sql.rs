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

    /// The text of a transaction that runs them, after the fence is checked where `fence` says so.
    pub(super) fn transaction(&self, fence: Option<u64>) -> (String, u64) {
        let mut text = String::from("BEGIN;\n");
        let mut count = self.len() + 2;
        if let Some(number) = fence {
            text.push_str(&format!("SELECT tenantry.hold_fence({number});\n"));
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
        let (text, count) = script.transaction(Some(7));
        assert_eq!(text, "BEGIN;\nSELECT tenantry.hold_fence(7);\nSELECT 1;\nSELECT 2;\nCOMMIT");
        assert_eq!(count, 5);
    }
}
