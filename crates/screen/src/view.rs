//! State to widgets. Pure: the same state and size give the same cells.
//!
//! Letters and lines only, so that it looks the same without colours, in every font and through every multiplexer.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph};

use crate::run::Run;
use crate::say;
use crate::state::{Column, Mood, Note, Panel, Requests, Row, State};

/// A smaller window shows a sentence instead.
const WIDTH_MIN: u16 = 60;
const HEIGHT_MIN: u16 = 16;
/// Lines of the run: a rule, the bar, where it is, whom it waits for.
const RUN_LINES: u16 = 4;
/// Lines of what happened, the rule among them, that tables leave.
const NOTES_LINES_MIN: u16 = 3;
/// With so many lines of what happened, a long one may have two.
const WRAP_MIN: usize = 8;
/// A name has so many characters at least.
const NAME_MIN: usize = 10;
/// Less room than this is not worth a column of words.
const ABOUT_MIN: usize = 16;
/// The way of a run that goes well, of a first one, of one in an emergency, and the way back.
const FORWARD: [&str; 10] = ["plan", "prepare", "set", "verify", "stage", "canary", "rollout", "drain", "revoke", "prove"];
const FIRST: [&str; 5] = ["plan", "prepare", "set", "verify", "rollout"];
const EMERGENCY: [&str; 7] = ["plan", "prepare", "set", "verify", "rollout", "revoke", "prove"];
const BACK: [&str; 5] = ["rollback_check", "rollback_republish", "rollback_drain", "rollback_revoke", "rollback_prove"];
const BACK_PREFIX: &str = "rollback_";

/// Whether colours may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// With colours; without, things are bold, underlined, dim or reversed.
    pub color: bool,
}

impl Look {
    /// As `NO_COLOR` says (<https://no-color.org>): set and not empty means without.
    #[must_use]
    pub fn of(no_color: Option<&std::ffi::OsStr>) -> Self {
        Self { color: no_color.is_none_or(std::ffi::OsStr::is_empty) }
    }

    fn colored(self, color: Color, without: Modifier) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new().add_modifier(without) }
    }

    fn mood(self, mood: Mood) -> Style {
        match mood {
            Mood::Plain => Style::new(),
            Mood::Good => self.colored(Color::Green, Modifier::empty()),
            Mood::Waits => self.colored(Color::Yellow, Modifier::BOLD),
            Mood::Bad => self.colored(Color::Red, Modifier::BOLD),
        }
    }

    /// The verdict over a table: what is seen from across the room.
    fn verdict(self, failed: u64) -> Style {
        match (self.color, failed) {
            (true, 0) => Style::new().fg(Color::Black).bg(Color::Green).add_modifier(Modifier::BOLD),
            (true, _) => Style::new().fg(Color::White).bg(Color::Red).add_modifier(Modifier::BOLD),
            (false, 0) => Style::new().add_modifier(Modifier::BOLD),
            (false, _) => Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED),
        }
    }
}

const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws the state over the whole frame.
pub fn draw(frame: &mut Frame<'_>, state: &State, look: Look) {
    let area = frame.area();
    frame.render_widget(Clear, area);
    if area.width < WIDTH_MIN || area.height < HEIGHT_MIN {
        let text =
            format!("This view needs {WIDTH_MIN}x{HEIGHT_MIN} characters, better 80x24; the window has {}x{}.", area.width, area.height);
        return frame.render_widget(Paragraph::new(text).wrap(ratatui::widgets::Wrap { trim: true }), area);
    }
    let keys = keys(state, area.width);
    let keys_height = length(keys.len());
    let most = [Some(&state.main), state.beside.as_ref()].into_iter().flatten().map(height).max().unwrap_or(0);
    let room = area.height.saturating_sub(1 + RUN_LINES + NOTES_LINES_MIN + keys_height);
    let [title, tables, run, notes, below] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(most.min(room)),
        Constraint::Length(RUN_LINES),
        Constraint::Min(NOTES_LINES_MIN),
        Constraint::Length(keys_height),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(heading(state, title.width)).style(REVERSED), title);
    match &state.beside {
        None => panel(frame, tables, &state.main, state.selected, look),
        Some(beside) => {
            let [left, right] = Layout::horizontal([Constraint::Percentage(65), Constraint::Percentage(35)]).areas(tables);
            panel(frame, left, &state.main, state.selected, look);
            panel(frame, right, beside, None, look);
        }
    }
    let lines = run_lines(state, look);
    let emergency = state.run.as_ref().and_then(|run| run.emergency.as_ref());
    let urgent = emergency.map(|emergency| format!("  EMERGENCY: {}", say::one_line(&emergency.reason))).unwrap_or_default();
    ruled(frame, run, &format!("{}{urgent}", state.run_title), Paragraph::new(lines));
    let room = usize::from(notes.height.saturating_sub(1));
    // Where there is room, a long one goes on in the next line.
    let lines_max = if room >= WRAP_MIN { 2 } else { 1 };
    let mut lines: Vec<Line<'_>> = Vec::new();
    for note in state.notes.iter().rev() {
        lines.extend(told(note, usize::from(notes.width), lines_max, look).into_iter().rev());
        if lines.len() >= room {
            break;
        }
    }
    lines.truncate(room);
    lines.reverse();
    ruled(frame, notes, "what happened", Paragraph::new(lines));
    frame.render_widget(Paragraph::new(keys), below);
}

fn heading(state: &State, width: u16) -> Line<'static> {
    let left = format!(" {}  {}", state.title, state.facts);
    let right = format!("{} ", clock(state.shown_for));
    let room = usize::from(width).saturating_sub(left.chars().count());
    Line::from(vec![Span::styled(left, STRONG), Span::raw(format!("{right:>room$}"))])
}

/// Text below a rule with a name.
fn ruled(frame: &mut Frame<'_>, area: Rect, name: &str, text: Paragraph<'_>) {
    let title = Line::from(vec![Span::raw(" "), Span::styled(name.to_owned(), STRONG), Span::raw(" ")]);
    frame.render_widget(text.block(Block::new().borders(Borders::TOP).title(title)), area);
}

/// How many lines a panel would have.
fn height(panel: &Panel) -> u16 {
    let verdict = u16::from(panel.requests.is_some());
    length(panel.rows.len()).saturating_add(2 + 2 + verdict + u16::from(has_sums(panel)))
}

fn has_sums(panel: &Panel) -> bool {
    panel.columns.iter().any(|column| matches!(column, Column::Old | Column::New | Column::Rate | Column::Failed))
}

fn panel(frame: &mut Frame<'_>, area: Rect, panel: &Panel, selected: Option<usize>, look: Look) {
    let title = Line::from(format!(" {} ", panel.title)).style(STRONG);
    let mut block = Block::bordered().title(title);
    if !panel.footer.is_empty() {
        block = block.title_bottom(Line::from(format!(" {} ", panel.footer)));
    }
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let mut rest = inner;
    if let Some(requests) = panel.requests {
        let [line, below] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(inner);
        let text = verdict(requests, usize::from(line.width));
        frame.render_widget(Paragraph::new(text).alignment(Alignment::Center).style(look.verdict(requests.failed)), line);
        rest = below;
    }
    frame.render_widget(Paragraph::new(table(panel, rest, selected, look)), rest);
}

/// In as many words as there is room for.
fn verdict(requests: Requests, width: usize) -> String {
    let short = format!("{} of {}", grouped(requests.failed), grouped(requests.sent));
    let long = ["requests failed", "failed"].map(|words| format!("{short} {words}"));
    long.into_iter().find(|text| text.chars().count() <= width).unwrap_or(short)
}

/// The lines of a table: two of headings, the replicas, the sums.
fn table(panel: &Panel, area: Rect, selected: Option<usize>, look: Look) -> Vec<Line<'static>> {
    let width = usize::from(area.width);
    let fixed: usize = panel.columns.iter().map(|column| column.width() + usize::from(column.width() > 0)).sum();
    let longest = panel.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(NAME_MIN);
    // One column at the left for the mark of the selected one.
    let room = width.saturating_sub(fixed + 1);
    let about = panel.columns.contains(&Column::About) && room >= longest + 2 + ABOUT_MIN;
    let name = if about { longest } else { room };
    let mut lines = headings(panel, name, about);
    let sums = usize::from(has_sums(panel));
    let fits = usize::from(area.height).saturating_sub(lines.len() + sums);
    let mut order: Vec<(usize, &Row)> = panel.rows.iter().enumerate().collect();
    if order.len() > fits {
        // Not all can be seen: those that somebody must look after first.
        order.sort_by_key(|(_, row)| std::cmp::Reverse(urgency(row)));
    }
    let cut = order.len().saturating_sub(fits);
    let shown = if cut > 0 { fits.saturating_sub(1) } else { order.len() };
    for (at, row) in order.iter().take(shown) {
        let chosen = selected == Some(*at);
        let mut text = format!("{}{:<name$}", if chosen { '>' } else { ' ' }, clipped(&row.name, name));
        let mut spans = Vec::new();
        for column in &panel.columns {
            let cell = column.cell(row);
            if *column == Column::Failed && row.failed.is_some_and(|failed| failed > 0) {
                spans.push(Span::raw(std::mem::take(&mut text)));
                spans.push(Span::styled(format!(" {cell:>w$}", w = column.width()), look.mood(Mood::Bad)));
            } else if column.width() > 0 {
                text.push_str(&format!(" {cell:>w$}", w = column.width()));
            } else if about {
                text.push_str("  ");
                text.push_str(&row.about);
            }
        }
        spans.push(Span::raw(text));
        let style = look.mood(row.mood);
        lines.push(Line::from(spans).style(if chosen { style.add_modifier(Modifier::BOLD) } else { style }));
    }
    if cut > 0 {
        lines.push(Line::from(format!(" and {} more", order.len() - shown)).style(DIM));
    }
    if sums > 0 {
        lines.push(total(panel, name).style(STRONG));
    }
    lines
}

fn urgency(row: &Row) -> u8 {
    match row.mood {
        Mood::Bad => 2,
        Mood::Waits => 1,
        Mood::Plain | Mood::Good => 0,
    }
}

/// A line with the names of pairs of columns, and one with those of each.
fn headings(panel: &Panel, name: usize, about: bool) -> Vec<Line<'static>> {
    let (mut above, mut below) = (format!(" {:<name$}", "replica"), format!(" {:<name$}", ""));
    for column in &panel.columns {
        let width = column.width();
        if width > 0 {
            let (over, own) = column.heading();
            below.push_str(&format!(" {own:>width$}"));
            // The name of a pair stands over the second of the two, and reaches over the first.
            let end = below.chars().count();
            let gap = end.saturating_sub(above.chars().count());
            if !over.is_empty() {
                above.push_str(&format!("{over:>gap$}"));
            }
        } else if about {
            above.push_str("  about");
        }
    }
    [above, below].map(|text| Line::from(text).style(DIM)).into()
}

fn total(panel: &Panel, name: usize) -> Line<'static> {
    let mut text = format!(" {:<name$}", "all");
    let sum = |of: fn(&Row) -> Option<u64>| grouped(panel.rows.iter().filter_map(of).sum());
    for column in panel.columns.iter().filter(|column| column.width() > 0) {
        let cell = match column {
            Column::Old => sum(|row| row.old),
            Column::New => sum(|row| row.new),
            Column::Failed => sum(|row| row.failed),
            Column::Rate => format!("{:.0}", panel.rows.iter().filter_map(|row| row.rate).sum::<f64>()),
            Column::Holds | Column::Level | Column::About => String::new(),
        };
        text.push_str(&format!(" {cell:>w$}", w = column.width()));
    }
    Line::from(text)
}

impl Column {
    fn width(self) -> usize {
        match self {
            Self::Holds | Self::Old | Self::New | Self::Rate => 4,
            Self::Level => 5,
            Self::Failed => 6,
            Self::About => 0,
        }
    }

    /// What stands over a pair of columns, at the second of them, and over this one.
    fn heading(self) -> (&'static str, &'static str) {
        match self {
            Self::Holds => ("", "gen"),
            Self::Level => ("value held", "level"),
            Self::Old => ("", "old"),
            Self::New => ("sessions", "new"),
            Self::Rate => ("", "/s"),
            Self::Failed => ("requests", "failed"),
            Self::About => ("", ""),
        }
    }

    fn cell(self, row: &Row) -> String {
        let number = |number: Option<u64>| number.map(grouped).unwrap_or_default();
        match self {
            Self::Holds => row.holds.map_or_else(|| "-".to_owned(), |generation| generation.to_string()),
            Self::Level => row.level.clone(),
            Self::Old => number(row.old),
            Self::New => number(row.new),
            Self::Rate => row.rate.map(|rate| format!("{rate:.0}")).unwrap_or_default(),
            Self::Failed => number(row.failed),
            Self::About => row.about.clone(),
        }
    }
}

/// The bar of phases, where the run is, and whom it waits for.
fn run_lines(state: &State, look: Look) -> Vec<Line<'static>> {
    let hint = Line::from(Span::styled(format!(" {}", state.hint.text), look.mood(state.hint.mood)));
    let Some(run) = &state.run else {
        return vec![Line::from(" no run yet").style(DIM), Line::default(), hint];
    };
    let waits = if run.is_closed() { String::new() } else { run.waits_in_short() };
    let third = match (&run.trouble, waits.is_empty()) {
        _ if run.stands() => Line::from(format!(" waits for {waits}")).style(look.mood(Mood::Waits)),
        (Some(trouble), _) if !run.is_closed() => {
            Line::from(format!(" tries again: {}", say::one_line(trouble))).style(look.mood(Mood::Waits))
        }
        (_, false) if state.hint.text.is_empty() => Line::from(format!(" not yet: {}", run.missing().join(", "))).style(DIM),
        _ => hint,
    };
    vec![bar(run, look), stands(run, state, look), third]
}

fn stands(run: &Run, state: &State, look: Look) -> Line<'static> {
    let good = matches!(run.verdict.as_deref(), Some("rotated" | "first"));
    let bad = !run.unproven.is_empty() || (run.emergency.is_some() && !run.is_closed());
    let mood = match (run.is_closed(), good, run.stands()) {
        _ if bad => Mood::Bad,
        (true, true, _) => Mood::Good,
        (true, false, _) | (_, _, true) => Mood::Waits,
        _ => Mood::Plain,
    };
    Line::from(format!(" {}", run.standing(state.now))).style(look.mood(mood))
}

/// `plan=prepare=[set]-verify-…`: what is done, where it is, what is to come; `<<` is where it turned back.
fn bar(run: &Run, look: Look) -> Line<'static> {
    let mut begun: Vec<&str> = run.phases.iter().map(|begun| begun.phase.as_str()).filter(|phase| *phase != "closed").collect();
    if begun.last().is_none_or(|last| *last != run.phase) && !run.is_closed() {
        begun.push(&run.phase);
    }
    let mut spans = vec![Span::raw(" ")];
    let mut back = false;
    for (at, phase) in begun.iter().enumerate() {
        let short = phase.strip_prefix(BACK_PREFIX);
        let turns = !back && (short.is_some() || *phase == "undo");
        back |= turns;
        if at > 0 {
            spans.push(Span::styled(if turns { "<<" } else { "=" }, look.mood(if back { Mood::Waits } else { Mood::Good })));
        }
        let short = short.unwrap_or(phase).to_owned();
        if at + 1 == begun.len() && !run.is_closed() {
            let style = look.mood(if run.stands() || back { Mood::Waits } else { Mood::Good });
            spans.push(Span::styled(format!("[{short}]"), style.add_modifier(Modifier::BOLD | Modifier::REVERSED)));
        } else {
            spans.push(Span::styled(short, look.mood(if back { Mood::Waits } else { Mood::Good })));
        }
    }
    if !run.is_closed() {
        let way: &[&str] = match (back, &run.old) {
            (true, _) => &BACK,
            (false, _) if run.emergency.is_some() => &EMERGENCY,
            (false, None) => &FIRST,
            (false, Some(_)) => &FORWARD,
        };
        let last = begun.last().copied().unwrap_or_default();
        for phase in way.iter().skip_while(|phase| **phase != last).skip(1) {
            spans.push(Span::styled(format!("-{}", phase.strip_prefix(BACK_PREFIX).unwrap_or(phase)), DIM));
        }
    }
    Line::from(spans)
}

/// A note in one line, or in more where it is long.
fn told(note: &Note, width: usize, lines_max: usize, look: Look) -> Vec<Line<'static>> {
    let at = format!(" {:>7}  ", note.at);
    let room = width.saturating_sub(at.chars().count() + 1);
    let mut lines = Vec::new();
    let mut rest = note.text.as_str();
    while lines.len() + 1 < lines_max && rest.chars().count() > room {
        let end = rest.char_indices().nth(room).map_or(rest.len(), |(end, _)| end);
        let (line, _) = rest.split_at(end);
        let (line, after) = line.rfind(' ').filter(|at| *at > 0).map_or(rest.split_at(end), |space| rest.split_at(space));
        lines.push(line.to_owned());
        rest = after.trim_start();
    }
    lines.push(rest.to_owned());
    let begin = |n: usize| if n == 0 { at.clone() } else { " ".repeat(at.chars().count()) };
    let line = |(n, text): (usize, String)| Line::from(vec![Span::styled(begin(n), DIM), Span::styled(text, look.mood(note.mood))]);
    lines.into_iter().enumerate().map(line).collect()
}

/// The keys, in as many lines as they need.
fn keys(state: &State, width: u16) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let (mut spans, mut used) = (Vec::new(), 0);
    for key in &state.keys {
        let length = key.key.chars().count() + key.does.chars().count() + 4;
        if used > 0 && used + length > usize::from(width) {
            lines.push(Line::from(std::mem::take(&mut spans)));
            used = 0;
        }
        used += length;
        spans.push(Span::raw(" "));
        spans.push(Span::styled(key.key, STRONG.add_modifier(Modifier::REVERSED)));
        let does = Span::raw(format!(" {}  ", key.does));
        spans.push(if key.on { does.style(STRONG.add_modifier(Modifier::UNDERLINED)) } else { does });
    }
    lines.push(Line::from(spans));
    lines
}

fn clipped(text: &str, width: usize) -> String {
    if text.chars().count() <= width { text.to_owned() } else { text.chars().take(width.saturating_sub(1)).chain(['~']).collect() }
}

/// 1234567 → `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Minutes and seconds.
fn clock(span: Duration) -> String {
    format!("{}:{:02}", span.as_secs() / 60, span.as_secs() % 60)
}

fn length(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
