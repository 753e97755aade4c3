//! Where others may ask (`--listen`).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use super::usage::UsageError;

/// Where we listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A port.
    Tcp(SocketAddr),
    /// A socket in the file system, for its owner alone.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `PORT`, `:PORT`, `localhost:PORT`, `IP:PORT` or `unix:PATH`. No other names: they may stand for
/// any address.
pub(super) fn parse_listen(text: &str) -> Result<ListenAddress, UsageError> {
    let wrong = |why: String| {
        let remedy =
            "give a port such as 9464 (of 127.0.0.1), an address such as 192.0.2.7:9464, or unix:PATH";
        UsageError::new("--listen", why, remedy)
    };
    if let Some(path) = text.strip_prefix("unix:") {
        return match path {
            "" => Err(wrong(format!("'{text}' names no file"))),
            path => Ok(ListenAddress::Unix(path.into())),
        };
    }
    let port = text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':')).unwrap_or(text);
    let address = match port.parse::<u16>() {
        Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        Err(_) => text.parse().map_err(|_| wrong(format!("'{text}' is not an address")))?,
    };
    Ok(ListenAddress::Tcp(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_of_this_machine() {
        for text in ["9464", ":9464", "localhost:9464", "127.0.0.1:9464"] {
            let address = parse_listen(text).expect(text);
            assert_eq!(address.to_string(), "http://127.0.0.1:9464", "{text}");
        }
        assert_eq!(parse_listen("[::]:1").expect("any").to_string(), "http://[::]:1");
        assert_eq!(parse_listen("unix:/run/m").expect("a path"), ListenAddress::Unix("/run/m".into()));
        for text in ["", "unix:", "host:80", "127.0.0.1", "70000", "http://127.0.0.1:1"] {
            let error = parse_listen(text).expect_err(text).to_string();
            assert!(error.starts_with("--listen: '"), "{error}");
        }
    }
}
