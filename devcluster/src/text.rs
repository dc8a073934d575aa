//! Small pieces of text: secrets, variables, and quoting for others to read.

use std::fmt::Write as _;
use std::path::PathBuf;

/// A password or token of 160 random bits, in letters and digits.
pub(crate) fn secret() -> String {
    let bits: [u8; 20] = rand::random();
    data_encoding::BASE32_NOPAD.encode(&bits).to_lowercase()
}

/// A path that the user set in the environment; an empty one counts as not set.
pub(crate) fn path_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// For use inside a URL: everything but letters, digits and `-._~/` is escaped.
pub(crate) fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut url, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            url.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(url, "%{byte:02X}");
        }
        url
    })
}

/// One word of a POSIX shell, quoted only where it must be.
pub(crate) fn shell_word(text: &str) -> String {
    let plain =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._/:@%+,=".contains(&byte));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A string value of `postgresql.conf`.
pub(crate) fn conf_value(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''").replace('\\', r"\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        for text in ["", "plain/path", "a b", "it's", "$HOME `id` \"x\"", "a&b?c=d"] {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", shell_word(text))])
                .output()
                .expect("a shell");
            assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }

    #[test]
    fn urls_keep_paths_readable_and_escape_the_rest() {
        assert_eq!(percent_encoded("/tmp/a b&c=d%é"), "/tmp/a%20b%26c%3Dd%25%C3%A9");
    }

    #[test]
    fn secrets_differ_and_need_no_quoting() {
        let (one, other) = (secret(), secret());
        assert_ne!(one, other);
        assert_eq!(one.len(), 32);
        assert_eq!(shell_word(&one), one);
    }
}
