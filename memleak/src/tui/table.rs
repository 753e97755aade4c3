//! The screen: a header, the table of rows, what the selected one is, and what keys do.

use std::fmt::Write as _;

use ratatui::{
    Frame,
    style::{Color, Modifier, Style},
};

use super::{
    canvas::{BOLD, Canvas, DIM, PLAIN, REVERSED, signed, sparkline},
    detail::detail,
    rows::{Row, SortColumn},
    state::{HEADER, Prompt, ShownPage, State},
};
use crate::{
    escape::printable,
    report::{
        format::{
            human::{account, percent, rate},
            line::{columns, cut, cut_place},
            lost::lost_line,
        },
        model::Report,
    },
    words::{BinaryBytes, Grouped, GroupedChange, Span, counted},
};

/// Rows below it.
const FOOTER: u16 = 2;

/// What keys do.
const HELP: [(&str, &str); 18] = [
    ("up, down, PgUp, PgDn, Home, End", "another site (also j k g G)"),
    ("Enter", "its stack, with lines of sources, and how long its blocks lived"),
    ("< >  or  s", "another order"),
    ("b c d a v n", "order by bytes, count, growth, age, verdict, name"),
    ("/", "search as you type: functions, files, modules, verdicts; Esc: all again"),
    ("p  or  space", "pause what is shown; tracing goes on"),
    ("m", "mark: growth is told from here on"),
    ("M", "no mark: growth is told since the report before"),
    ("t", "each process by itself; each thread by itself; all of them together"),
    ("f", "names in full, or short"),
    ("w", "write a report of now: .html .svg .pb.gz .zst .json .txt ..."),
    ("q  or  Ctrl-C", "end, with a last report"),
    ("the mouse", "the wheel scrolls, a click selects, one more opens; with Shift: the terminal's"),
    ("", ""),
    ("GROWTH", "since the report before, or since the mark"),
    ("LAST", "what was held in the reports so far"),
    ("AGE", "of the oldest that is held"),
    ("VERDICT", "leak, growing, cache, in use, temporary, unknown"),
];

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let area = frame.area();
    let mut canvas = Canvas { buffer: frame.buffer_mut(), area, color: state.appearance.color };
    state.room = usize::from(area.height.saturating_sub(HEADER + FOOTER));
    state.keep_in_sight();
    let Some(report) = state.report.clone() else {
        canvas.text(1, 0, "memleak", BOLD);
        canvas.text(1, 2, "The first report comes after one INTERVAL; q ends.", PLAIN);
        footer(&mut canvas, state, None);
        return;
    };
    header(&mut canvas, state, &report);
    match state.page {
        ShownPage::Table => table(&mut canvas, state, &report),
        ShownPage::Detail(above) => {
            let row = state.rows.get(state.selected()).cloned();
            let above = row.map_or(0, |row| {
                let with_source = state.appearance.with_source;
                let full_names = state.appearance.full_names;
                let lines = detail(&report, &row, with_source, full_names, canvas.width());
                let above = above.min(lines.len().saturating_sub(state.room));
                for (at, line) in lines.iter().skip(above).take(state.room + 1).enumerate() {
                    let y = HEADER - 1 + u16::try_from(at).unwrap_or(u16::MAX);
                    let style = line.style(&canvas);
                    canvas.words(1, y, &line.text, style, canvas.width());
                }
                above
            });
            state.page = ShownPage::Detail(above);
        }
        ShownPage::Help => help(&mut canvas),
    }
    footer(&mut canvas, state, Some(&report));
}

fn header(canvas: &mut Canvas<'_>, state: &State, report: &Report) {
    let target = &report.target;
    let pids = match target.pids.as_slice() {
        [] => String::new(),
        [pid] => format!(" ({pid})"),
        [first, others @ ..] => format!(" ({first} and {} more)", Grouped(others.len() as u64)),
    };
    let title = format!("{}{pids}", printable(&target.comm));
    let mut said = format!(", traced for {}", Span(report.elapsed_ms));
    if let Some(estimated) = report.sampling.said() {
        let _ = write!(said, ", {estimated}");
    }
    let status = match (report.is_final, state.is_paused) {
        (true, _) => " ended: the last report ",
        (false, true) => " paused ",
        (false, false) => "",
    };
    let room = canvas.width().saturating_sub(columns(status));
    let at = canvas.words(1, 0, &title, BOLD, room);
    canvas.words(at, 0, &said, PLAIN, room);
    canvas.text_at_end(0, status, REVERSED);
    let end = canvas.width();
    let totals = report.totals;
    let held = format!("{} in {}", BinaryBytes(totals.bytes), counted(totals.count, "block"));
    let at = canvas.words(1, 1, &held, BOLD, end);
    let mut said = rate(report).map_or_else(String::new, |rate| format!(", {rate}"));
    if let Some((peak, time)) = state.peak {
        let _ = write!(said, "; most {}", BinaryBytes(peak));
        let ago = report.time.duration_since(time).map_or(0, |ago| ago.as_secs());
        if ago > 0 {
            let _ = write!(said, ", {} ago", Span(ago * 1000));
        }
    }
    if let (Some(mark), Some(since)) = (&state.mark, state.since_mark()) {
        let bytes = i128::from(totals.bytes) - i128::from(mark.bytes);
        let count = i128::from(totals.count) - i128::from(mark.count);
        let bytes = signed(i64::try_from(bytes).unwrap_or(i64::MAX));
        let _ = write!(said, "; since the mark ({} s): {bytes} ({})", since.as_secs(), GroupedChange(count));
    }
    canvas.words(at, 1, &said, PLAIN, end);
    let moments: Vec<u64> = report.moments.iter().map(|moment| moment.bytes).collect();
    let graph = sparkline(&moments, canvas.width().saturating_sub(2));
    canvas.text(1, 2, &graph, canvas.colored(Color::Cyan));
    let released = match totals.acquired {
        0 => "nothing was acquired".to_owned(),
        acquired => format!("{} of {} released", percent(totals.released, acquired), Grouped(acquired)),
    };
    let memory = report.memory.as_ref().map(account).into_iter().chain([released]);
    let memory = memory.collect::<Vec<_>>().join("; ");
    match lost_line(&report.lost) {
        Some(lost) => {
            canvas.words(1, 3, &lost, canvas.colored(Color::Yellow).add_modifier(Modifier::BOLD), end)
        }
        None => canvas.words(1, 3, &memory, PLAIN, end),
    };
}

/// A column: its heading, its width, by what it is in order, and its text.
type Column = (&'static str, usize, Option<SortColumn>, fn(&Row) -> String);

const COLUMNS: [Column; 7] = [
    ("BYTES", 9, Some(SortColumn::Bytes), |row| match row.has_size {
        true => BinaryBytes(row.bytes).to_string(),
        false => "-".to_owned(),
    }),
    ("SHARE", 6, None, |row| match row.share {
        1000 => "100%".to_owned(),
        share => format!("{}.{}%", share / 10, share % 10),
    }),
    ("COUNT", 8, Some(SortColumn::Count), |row| short(row.count)),
    ("GROWTH", 10, Some(SortColumn::Growth), |row| {
        match (row.has_size, row.growth_bytes, row.growth_count) {
            (true, Some(bytes), _) => signed(bytes),
            (false, _, Some(count)) => GroupedChange(count.into()).to_string(),
            _ => "?".to_owned(),
        }
    }),
    ("LAST", 6, None, |row| sparkline(&row.points, 6)),
    ("AGE", 7, Some(SortColumn::Age), |row| {
        row.oldest_ms.map_or_else(|| "-".to_owned(), |ms| Span(ms).to_string())
    }),
    ("VERDICT", 9, Some(SortColumn::Verdict), |row| row.verdict.words().to_owned()),
];

/// Columns that go first where there is little room, by their places.
const FIRST_TO_GO: [usize; 4] = [4, 2, 5, 1];
/// What names need.
const NAMES: usize = 18;

/// A number in 7 columns: `12,345`, `123 M`.
fn short(number: u64) -> String {
    match number {
        0..=999_999 => Grouped(number).to_string(),
        1_000_000..=999_999_999 => format!("{}.{} M", number / 1_000_000, number / 100_000 % 10),
        _ => format!("{} G", Grouped(number / 1_000_000_000)),
    }
}

/// The columns that fit, by their places.
fn fitting(width: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..COLUMNS.len()).collect();
    let taken = |places: &[usize]| {
        places.iter().filter_map(|at| COLUMNS.get(*at)).map(|(_, width, ..)| width + 1).sum::<usize>()
    };
    for gone in FIRST_TO_GO {
        if width < taken(&places) + NAMES {
            places.retain(|at| *at != gone);
        }
    }
    places
}

fn table(canvas: &mut Canvas<'_>, state: &State, report: &Report) {
    let columns: Vec<&Column> =
        fitting(canvas.width()).into_iter().filter_map(|at| COLUMNS.get(at)).collect();
    let taken: usize = columns.iter().map(|(_, width, ..)| width + 1).sum();
    let names = canvas.width().saturating_sub(taken);
    let y = HEADER - 1;
    let of_all = match state.rows.len() == state.all_rows {
        true => format!(" SITE ({})", state.all_rows),
        false => format!(" SITE ({} of {})", state.rows.len(), state.all_rows),
    };
    canvas.line_style(y, REVERSED);
    let underlined = |is_sorted| {
        if is_sorted { REVERSED.add_modifier(Modifier::BOLD | Modifier::UNDERLINED) } else { REVERSED }
    };
    canvas.text(0, y, &of_all, underlined(state.sort == SortColumn::Site));
    write_columns(canvas, names, y, &columns, |(heading, _, by, _)| {
        ((*heading).to_owned(), underlined(by.is_some_and(|by| by == state.sort)))
    });
    if state.rows.is_empty() {
        let said = match state.filter.is_empty() {
            true => report.if_empty.clone().unwrap_or_else(|| "nothing is outstanding".to_owned()),
            false => format!("nothing has '{}' in its stack; Esc shows all", printable(&state.filter)),
        };
        canvas.words(1, y + 1, &said, PLAIN, canvas.width());
    }
    for (at, row) in state.rows.iter().enumerate().skip(state.top).take(state.room) {
        let y = HEADER + u16::try_from(at - state.top).unwrap_or(u16::MAX);
        let is_selected = at == state.selected();
        let style = |style: Style| if is_selected { style.add_modifier(Modifier::REVERSED) } else { style };
        if is_selected {
            canvas.line_style(y, REVERSED);
        }
        let resource =
            row.resource.as_ref().map_or_else(String::new, |name| format!("{}: ", printable(name)));
        let name = format!("{resource}{}", row.name);
        let part = row.part.as_deref().map_or_else(String::new, |part| format!("{}  ", fit(part, names)));
        let name = format!(" {part}{name}");
        let at = canvas.text(0, y, &cut(&name, names.saturating_sub(1)), style(PLAIN));
        let place = cut_place(&row.place, names.saturating_sub(usize::from(at) + 3));
        if place.len() > 4 {
            canvas.text(at + 2, y, &place, style(DIM));
        }
        let verdict = canvas.of_verdict(row.verdict);
        write_columns(canvas, names, y, &columns, |(heading, _, _, text)| {
            (text(row), style(if *heading == "VERDICT" { verdict } else { PLAIN }))
        });
    }
}

/// `4712 worker`, or its number alone where there is no room for a function beside its name.
fn fit(part: &str, names: usize) -> &str {
    match columns(part) + 2 * NAMES <= names {
        true => part,
        false => part.split(' ').next().unwrap_or(part),
    }
}

/// Numbers stand at the right ends of their columns, words at the left.
fn write_columns(
    canvas: &mut Canvas<'_>,
    from: usize,
    y: u16,
    columns: &[&Column],
    text: impl Fn(&Column) -> (String, Style),
) {
    let mut x = from;
    for column in columns {
        let (heading, width, ..) = column;
        let (text, style) = text(column);
        let text = match *heading {
            "VERDICT" | "LAST" => format!("{text:width$}"),
            _ => format!("{text:>width$}"),
        };
        canvas.text(u16::try_from(x).unwrap_or(u16::MAX), y, &text, style);
        x += width + 1;
    }
}

fn help(canvas: &mut Canvas<'_>) {
    canvas.text(1, HEADER - 1, "Keys (any key goes back)", BOLD);
    for (at, (keys, what)) in HELP.iter().enumerate() {
        let y = HEADER + u16::try_from(at).unwrap_or(u16::MAX);
        // The footer's rows are not ours.
        if y + FOOTER >= canvas.area.height {
            break;
        }
        let end = canvas.text(2, y, keys, BOLD);
        canvas.text(end.max(16) + 2, y, what, PLAIN);
    }
}

fn footer(canvas: &mut Canvas<'_>, state: &State, report: Option<&Report>) {
    let (above, last) = (canvas.area.height.saturating_sub(2), canvas.area.height.saturating_sub(1));
    let row = state.rows.get(state.selected()).filter(|_| state.page == ShownPage::Table && report.is_some());
    if let Some(row) = row {
        let style = canvas.of_verdict(row.verdict);
        let text = format!("{}: {}", row.verdict.words(), row.reason);
        canvas.words(1, above, &text, style, canvas.width());
    }
    match (&state.prompt, &state.message) {
        (Prompt::Filter, _) => {
            let end = canvas.text(1, last, &format!("search: {}", printable(&state.filter)), BOLD);
            canvas.text(end, last, "_   (Enter keeps it, Esc ends it)", DIM);
        }
        (Prompt::File(name), _) => {
            let end = canvas.text(1, last, &format!("write to: {}", printable(name)), BOLD);
            canvas.text(end, last, "_   (Enter, or Esc)", DIM);
        }
        (Prompt::None, Some(message)) => {
            canvas.words(1, last, message, BOLD, canvas.width());
        }
        (Prompt::None, None) => {
            let keys = match (&state.page, state.filter.is_empty()) {
                (ShownPage::Table, true) => {
                    "q quit  Enter stack  / search  <> order  p pause  m mark  t split  ? help"
                }
                (ShownPage::Table, false) => "Esc all again  Enter stack  < > order  q quit  ? help",
                (ShownPage::Detail(_), _) => "Esc back  up down  f full names  ? help",
                (ShownPage::Help, _) => "any key goes back",
            };
            canvas.text(1, last, keys, DIM);
        }
    }
}
