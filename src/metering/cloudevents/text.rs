//! What attributes may hold.

/// Whether a text is a URI-reference of RFC 3986: an absolute URI or a relative reference.
pub(super) fn is_uri_reference(text: &str) -> bool {
    let (before, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (hierarchy, query) = before.split_once('?').unwrap_or((before, ""));
    let rest = match hierarchy.split_once(':') {
        // A colon in the first segment ends a scheme.
        Some((scheme, rest)) if !scheme.contains('/') => {
            if !is_scheme(scheme) {
                return false;
            }
            rest
        }
        _ => hierarchy,
    };
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", rest),
    };
    is_made_of(authority, b":@[]")
        && is_made_of(path, b":@/")
        && [query, fragment].iter().all(|part| is_made_of(part, b":@/?"))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Whether all is unreserved, a sub-delimiter, percent-encoded, or one of `more`.
fn is_made_of(text: &str, more: &[u8]) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let fits = match byte {
            b'%' => {
                [bytes.next(), bytes.next()].iter().all(|digit| digit.is_some_and(|digit| digit.is_ascii_hexdigit()))
            }
            _ => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte) || more.contains(&byte),
        };
        if !fits {
            return false;
        }
    }
    true
}

/// Whether a text has a character that no attribute may have: a control character, which
/// PostgreSQL does not all take either, or what Unicode will never be.
pub(super) fn has_forbidden(text: &str) -> bool {
    let is_noncharacter = |c: char| matches!(u32::from(c), 0xFDD0..=0xFDEF) || u32::from(c) & 0xFFFE == 0xFFFE;
    text.chars().any(|c| c.is_control() || is_noncharacter(c))
}

/// Whether this is how an attribute may be called.
pub(super) fn is_attribute_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_uris() {
        for good in [
            "/tenantry/main/pool_crm_1",
            "https://example.com/a?b=c#d",
            "https://[2001:db8::1]:8080/x",
            "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
            "mailto:jane@example.com",
            "a/b:c",
            "?q",
            "1-555-123-4567",
            "caf%C3%A9",
        ] {
            assert!(is_uri_reference(good), "{good}");
        }
        for bad in
            ["with space", "café", "a%2", "a%zz", "1a:b", ":a", "a[b]", "a#b#c", "\\server", "<a>", "a|b", "/a[0]"]
        {
            assert!(!is_uri_reference(bad), "{bad}");
        }
    }

    #[test]
    fn characters_and_names() {
        for bad in ["a\0b", "tab\t", "\u{7f}", "\u{85}", "\u{FDD0}", "\u{1FFFE}"] {
            assert!(has_forbidden(bad), "{bad:?}");
        }
        assert!(!has_forbidden("Überweisung №5 🎉"));
        for (name, good) in [("traceparent", true), ("a1", true), ("traceParent", false), ("a_b", false), ("", false)] {
            assert_eq!(is_attribute_name(name), good, "{name}");
        }
    }
}
