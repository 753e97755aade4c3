//! A flame graph: an SVG picture that browsers search and zoom in.

use std::io::{self, Write};

use inferno::flamegraph::{self, Palette, color::BasicPalette};

use super::{Format, Kind, Measure, Options, folded::fold_report, kind::FileForm};
use crate::{escape::printable, report::model::Report};

/// `--flamegraph`.
pub const KIND: Kind = Kind { name: "flamegraph", has_events: false, new };

fn new(options: &Options) -> Box<dyn Format> {
    FileForm::boxed(options, false, |report, options, out| {
        write_flamegraph(report, options.flamegraph_by, options.style.full_names, out)
    })
}

/// Writes a report.
pub fn write_flamegraph(
    report: &Report,
    measure: Measure,
    full_names: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let (what, count_name) = match measure {
        Measure::Bytes => ("outstanding bytes", "bytes"),
        Measure::Count => ("outstanding allocations", "allocations"),
        Measure::Growth => ("growth since the report before", "bytes"),
        Measure::Acquired => ("acquired since tracing began", "bytes"),
    };
    let lines: Vec<String> = fold_report(report, measure, full_names)
        .into_iter()
        .map(|(line, number)| format!("{line} {number}"))
        .collect();
    let title = format!("{}: {what}", report.target.comm);
    draw(&title, count_name, Palette::Basic(BasicPalette::Mem), &lines, out)
}

/// Draws folded lines with two numbers each, the earlier and the later one.
pub fn draw_difference(title: &str, lines: &[String], out: &mut dyn Write) -> io::Result<()> {
    draw(title, "bytes", Palette::default(), lines, out)
}

/// Draws folded lines.
fn draw(
    title: &str,
    count_name: &str,
    colors: Palette,
    lines: &[String],
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut options = flamegraph::Options::default();
    options.title = printable(title).into_owned();
    options.count_name = count_name.to_owned();
    options.colors = colors;
    // The same report is the same picture.
    options.deterministic = true;
    match lines {
        // inferno writes an error into the picture, and gives one.
        [] => writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"600\" height=\"40\">\
             <text x=\"10\" y=\"25\">Nothing is outstanding.</text></svg>"
        ),
        lines => flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out),
    }
}
