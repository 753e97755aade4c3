//! Files beside the reports on standard output: one for each form that is asked for, of the last
//! report, whole or not at all.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use ruzstd::encoding::{CompressionLevel, compress};

use super::{
    format::{
        Format, Kind, Options, firefox, flamegraph, folded, heaptrack, html, perfetto, pprof, saved,
        speedscope, text,
    },
    model::Report,
    output::{self, OutputError, Protected, WholeFile},
};

/// A file that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportFile {
    /// In which form.
    pub kind: Kind,
    /// Its name.
    pub path: PathBuf,
}

impl ReportFile {
    /// The option that has asked for it.
    pub fn name(&self) -> String {
        format!("--{} {}", self.kind.name, self.path.display())
    }

    /// It goes where reports would go.
    pub fn is_stdout(&self) -> bool {
        self.path.as_os_str() == "-"
    }

    /// Its place in the file system.
    fn place(&self) -> &Path {
        if self.is_stdout() { Path::new("/dev/stdout") } else { &self.path }
    }

    /// What is wrong with it, as far as this can be known before there is a report.
    pub fn check(&self, protected: &Protected) -> Result<(), OutputError> {
        output::check(self.place(), protected)
    }

    /// The form.
    pub fn format(&self, options: &Options) -> Box<dyn Format> {
        (self.kind.new)(options)
    }

    /// Writes it.
    pub fn write(
        &self,
        format: &dyn Format,
        report: &Report,
        protected: &Protected,
    ) -> Result<(), ReportFileError> {
        let mut bytes = Vec::new();
        format.report(report, &mut bytes).map_err(ReportFileError::Write)?;
        self.write_bytes(bytes, protected)
    }

    /// Writes what is made already; compressed, if its name ends in `.gz` or `.zst`, or its form
    /// always is.
    pub fn write_bytes(&self, bytes: Vec<u8>, protected: &Protected) -> Result<(), ReportFileError> {
        let has_ending = |ending: &str| self.path.extension().is_some_and(|found| found == ending);
        let bytes = match self.kind {
            kind if has_ending("gz") || kind == pprof::KIND => {
                gzip(&bytes).map_err(ReportFileError::Write)?
            }
            _ if has_ending("zst") => {
                let mut compressed = Vec::new();
                compress(bytes.as_slice(), &mut compressed, CompressionLevel::Fastest);
                compressed
            }
            _ => bytes,
        };
        let mut file = WholeFile::create(self.place(), protected).map_err(ReportFileError::Output)?;
        file.write_all(&bytes).and_then(|()| file.commit()).map_err(ReportFileError::Write)
    }
}

/// Endings of names, and the forms that they stand for. The longest that fits counts.
const ENDINGS: [(&str, Kind); 12] = [
    (".html", html::KIND),
    (".svg", flamegraph::KIND),
    (".pb.gz", pprof::KIND),
    (".pprof", pprof::KIND),
    (".heaptrack.gz", heaptrack::KIND),
    (".zst", heaptrack::KIND),
    (".speedscope.json", speedscope::KIND),
    (".firefox.json", firefox::KIND),
    (".pftrace", perfetto::KIND),
    (".folded", folded::KIND),
    (".txt", text::KIND),
    (".json", saved::KIND),
];

/// The form that a file's name stands for; what says nothing is saved to be read again.
pub fn kind_of_name(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_string_lossy();
    let fits = |(ending, _): &&(&str, Kind)| name.ends_with(ending);
    let longest = ENDINGS.iter().filter(fits).max_by_key(|(ending, _)| ending.len());
    match longest {
        Some((_, kind)) => Some(*kind),
        None => (!name.contains('.') || name.ends_with(".json.gz") || name.ends_with(".save.gz"))
            .then_some(saved::KIND),
    }
}

/// Compressed.
pub(crate) fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Why a file is not there.
#[derive(Debug, thiserror::Error)]
pub enum ReportFileError {
    /// It must not be written to, or cannot be.
    #[error("{0}")]
    Output(OutputError),
    /// Writing failed.
    #[error("cannot be written to: {0}; make room, or name another file")]
    Write(io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_forms() {
        for (name, form) in [
            ("a.html", Some("html")),
            ("/tmp/a.b.svg", Some("flamegraph")),
            ("a.pb.gz", Some("pprof")),
            ("a.zst", Some("heaptrack")),
            ("a.speedscope.json", Some("speedscope")),
            ("a.firefox.json", Some("firefox")),
            ("a.json", Some("save")),
            ("a.json.gz", Some("save")),
            ("before", Some("save")),
            ("a.txt", Some("text")),
            ("a.exe", None),
            ("", None),
        ] {
            assert_eq!(kind_of_name(Path::new(name)).map(|kind| kind.name), form, "{name}");
        }
    }
}
