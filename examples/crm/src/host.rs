//! Which tenant a request is for: its Host header, and nothing else that a client can send.

use axum::extract::FromRequestParts;
use axum::http::header::HOST;
use axum::http::request::Parts;

use crate::error::Error;

/// The host that a request names: a lower-case DNS name without port.
///
/// It becomes part of a path (`hosts/HOST/uri`), so there is no way to make one that isn't a DNS name: no slash, no
/// `..`, no percent sign and no IP literal in brackets ever reaches the file system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TenantHost(String);

impl TenantHost {
    /// Reads a Host header: the port and one trailing dot go, upper case becomes lower case.
    pub fn parse(header: &str) -> Option<Self> {
        let name = match header.split_once(':') {
            Some((name, port)) if port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            Some(_) => return None,
            None => header,
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        (name.len() <= 253 && name.split('.').all(is_dns_label)).then_some(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

impl<S: Sync> FromRequestParts<S> for TenantHost {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let mut headers = parts.headers.get_all(HOST).iter();
        // Two of them, or one here and another in the request line, are how proxies are confused.
        let (Some(header), None) = (headers.next(), headers.next()) else {
            return Err(Error::BadHost);
        };
        let host = header.to_str().ok().and_then(Self::parse).ok_or(Error::BadHost)?;
        match parts.uri.authority() {
            Some(authority) if Self::parse(authority.as_str()).as_ref() != Some(&host) => Err(Error::BadHost),
            _ => Ok(host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_dns_name_without_port_and_case() {
        for (header, host) in [
            ("acme.example.com", "acme.example.com"),
            ("ACME.Example.com:8080", "acme.example.com"),
            ("acme.example.com.", "acme.example.com"),
            ("acme.example.com.:443", "acme.example.com"),
            ("localhost:", "localhost"),
            ("127.0.0.1:80", "127.0.0.1"),
        ] {
            assert_eq!(TenantHost::parse(header).map(|host| host.0).as_deref(), Some(host), "{header}");
        }
    }

    #[test]
    fn nothing_else_passes() {
        let long_label = format!("{}.com", "a".repeat(64));
        let long_name = ["a".repeat(63).as_str(); 4].join(".");
        for header in [
            "",
            ".",
            "..",
            ":80",
            "a..b",
            "../acme",
            "a/b",
            "a\\b",
            "a%2fb",
            "%2e%2e",
            "[::1]",
            "[::1]:80",
            "::1",
            "a:b",
            "a:80:80",
            "a:123456",
            "-a.com",
            "a-.com",
            "a_b.com",
            "acme.example.com..",
            ".acme.com",
            "acme example.com",
            "user@acme.com",
            "ácme.com",
            "a\0b",
            "*.example.com",
            &long_label,
            &long_name,
        ] {
            assert_eq!(TenantHost::parse(header), None, "{header:?}");
        }
    }
}
