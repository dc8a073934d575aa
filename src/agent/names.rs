//! Names that may become parts of a path.
//!
//! Everything that the agent writes is named by somebody else: a label, an annotation, a key of a Secret. Nothing of
//! that reaches the file system before it has passed here.

/// The longest DNS name, in bytes (RFC 1123).
const MAX_DNS_NAME: usize = 253;
/// The longest DNS label, and the longest value of a Kubernetes label, in bytes.
const MAX_LABEL: usize = 63;

/// Whether `name` is a DNS-1123 label: 1 to 63 of `a-z`, `0-9` and `-`, neither beginning nor ending with `-`.
pub(super) fn is_dns_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    bytes.len() <= MAX_LABEL
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// Whether `name` is a DNS-1123 name: labels joined by single dots, at most 253 bytes.
///
/// Such a name holds no slash and no `..`, and is never `.`: it stays in the folder that it is joined to.
pub(super) fn is_dns_name(name: &str) -> bool {
    name.len() <= MAX_DNS_NAME && name.split('.').all(is_dns_label)
}

/// Whether `key` is a key that Kubernetes allows in a Secret and that makes a plain file name: at most 253 of letters,
/// digits, `-`, `_` and `.`, not `.` and not beginning with `..`.
pub(super) fn is_file_key(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= MAX_DNS_NAME
        && key != "."
        && !key.starts_with("..")
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    #[test]
    fn dns_names_are_told_from_the_rest() {
        for good in ["a", "acme.example.com", "1.2", "a-b.c", &format!("{}.com", "a".repeat(63))] {
            assert!(is_dns_name(good), "{good}");
        }
        let long = ["a".repeat(63).as_str(); 4].join(".");
        for bad in [
            "",
            ".",
            "..",
            "a.",
            ".a",
            "a..b",
            "-a",
            "a-",
            "A.com",
            "a_b",
            "a/b",
            "../a",
            "a%2e",
            "a\0",
            "ä.com",
            "[::1]",
            "*.example.com",
            " a",
            &"a".repeat(64),
            &long,
        ] {
            assert!(!is_dns_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_label_has_no_dots() {
        assert!(is_dns_label("acme"));
        assert!(!is_dns_label("acme.com"));
    }

    proptest! {
        #[test]
        fn what_passes_is_one_plain_path_component(name in "[-a-zA-Z0-9./_\\\\%\\x00]{0,12}") {
            if is_dns_name(&name) || is_dns_label(&name) || is_file_key(&name) {
                let components: Vec<_> = Path::new(&name).components().collect();
                prop_assert_eq!(components, vec![Component::Normal(name.as_ref())]);
            }
        }
    }
}
