//! Who is sent reports (`--push`).

use std::fmt;

use hyper::http::Uri;

use super::usage::UsageError;

/// What a receiver understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushProtocol {
    /// Pyroscope's `push.v1.PusherService/Push`, in JSON.
    Pyroscope,
    /// Pyroscope's `/ingest`, a form of several parts.
    Ingest,
    /// Parca's `/api/profiles/writeraw`, in JSON.
    Parca,
}

/// A receiver of reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushTarget {
    /// What it understands.
    pub protocol: PushProtocol,
    /// Its host, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Where to post.
    pub path: String,
    /// `user:password`, if it asks for them.
    pub user: Option<String>,
}

/// Without the password.
impl fmt::Display for PushTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.authority(), self.path)
    }
}

impl PushTarget {
    /// Host and port as a URL has them.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Where plain HTTP is.
const HTTP_PORT: u16 = 80;

/// Where each of them takes reports.
const PYROSCOPE: &str = "/push.v1.PusherService/Push";
const INGEST: &str = "/ingest";
const PARCA: &str = "/api/profiles/writeraw";

/// The path says what the receiver understands; none: Pyroscope.
pub(super) fn parse_push(text: &str) -> Result<PushTarget, UsageError> {
    let wrong = |why: &str| {
        let remedy =
            "give http://HOST:4040 for Pyroscope, or http://HOST:7070/api/profiles/writeraw for Parca";
        UsageError::new("--push", format!("'{}' {why}", without_password(text)), remedy)
    };
    let uri: Uri = text.parse().map_err(|_| wrong("is not a URL"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            let why = "asks for TLS, which memleak does not speak";
            return Err(UsageError::new(
                "--push",
                why,
                "push to an agent on this machine, such as Grafana Alloy",
            ));
        }
        _ => return Err(wrong("does not begin with http://")),
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("names no host"))?;
    let authority = uri.authority().map_or("", |all| all.as_str());
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (Some(unescaped(user)), place),
        None => (None, authority),
    };
    let port = match place.strip_prefix(host) {
        Some("" | ":") => HTTP_PORT,
        Some(port) => {
            let number = port.trim_start_matches(':').parse().ok().filter(|number| *number > 0);
            number.ok_or_else(|| wrong("has no port of 1 to 65535"))?
        }
        None => return Err(wrong("names no host")),
    };
    if uri.query().is_some() {
        return Err(wrong("has a query (?...), which would not be sent"));
    }
    let path = uri.path().trim_end_matches('/');
    let (protocol, path) = match path {
        "" => (PushProtocol::Pyroscope, PYROSCOPE.to_owned()),
        path if path.ends_with(PYROSCOPE) => (PushProtocol::Pyroscope, path.to_owned()),
        path if path.ends_with(INGEST) => (PushProtocol::Ingest, path.to_owned()),
        path if path.ends_with(PARCA) => (PushProtocol::Parca, path.to_owned()),
        _ => return Err(wrong("is no place where Pyroscope or Parca take profiles")),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(PushTarget { protocol, host, port, path, user })
}

/// A name or password in which `%40` stands for `@` (RFC 3986, 2.1).
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        let byte = (*first == b'%').then(|| Some(digit(0)? * 16 + digit(1)?)).flatten();
        bytes.push(byte.map_or(*first, |byte| byte as u8));
        rest = after.get(if byte.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn without_password(text: &str) -> String {
    match (text.split_once("//"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}//...@{rest}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_who_it_is() {
        let push = |text: &str| parse_push(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let one = push("http://pyroscope:4040");
        assert_eq!((one.protocol, one.port, one.path.as_str()), (PushProtocol::Pyroscope, 4040, PYROSCOPE));
        assert_eq!(push("http://u:p@h/x/ingest/").protocol, PushProtocol::Ingest);
        assert_eq!(push("http://u:p@h/x/ingest/").user.as_deref(), Some("u:p"));
        let parca = push("http://[::1]:7070/api/profiles/writeraw");
        assert_eq!((parca.protocol, parca.host.as_str(), parca.port), (PushProtocol::Parca, "::1", 7070));
        assert_eq!(parca.to_string(), "[::1]:7070/api/profiles/writeraw");
        assert_eq!((push("http://h").port, push("http://u@h:").port), (80, 80));
        for (escaped, user) in [("u:p%40s%3As", "u:p@s:s"), ("u:50%", "u:50%"), ("u:%zz%+1", "u:%zz%+1")] {
            assert_eq!(push(&format!("http://{escaped}@h:1")).user.as_deref(), Some(user));
        }
        for (text, wanted) in [
            ("https://a", "asks for TLS"),
            ("a:4040", "does not begin with http://"),
            ("http://a/b", "is no place where"),
            ("http://u:secret@a/b", "'http://...@a/b' is no place"),
            ("", "is not a URL"),
            ("http://a:99999", "has no port of 1 to 65535"),
            ("http://a:0", "has no port of 1 to 65535"),
            ("http://u:secret@a/ingest?name=x", "'http://...@a/ingest?name=x' has a query"),
        ] {
            let error = parse_push(text).expect_err(text).to_string();
            assert!(error.contains(wanted) && !error.contains("secret"), "{error}");
        }
    }
}
