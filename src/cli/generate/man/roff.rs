//! Writing man(7): what the words are, and never how they are escaped, is the caller's.
//!
//! Words have two marks: \`bold\` for what is typed as it stands, and \*italic\* for what stands for
//! something, or is stressed.

/// How wide the lines of the source are.
const WIDTH: usize = 78;

/// A page being written.
#[derive(Debug)]
pub(super) struct Roff {
    text: String,
}

impl Roff {
    pub(super) fn new(name: &str, section: u8, revised: &str, volume: &str) -> Self {
        let title = escape(&name.to_uppercase());
        let source = concat!("captive ", env!("CARGO_PKG_VERSION"));
        Self {
            text: format!(
                ".\\\" Made by: {name} \\-\\-generate man\n\
                 .TH {title} {section} {revised} \"{source}\" \"{volume}\"\n\
                 .\\\" No hyphens of our own: words here are to be typed.\n\
                 .nh\n.ad l\n"
            ),
        }
    }

    pub(super) fn section(&mut self, name: &str) {
        self.line(&format!(".SH {}", escape(name)));
    }

    /// A line as it is.
    pub(super) fn line(&mut self, line: &str) {
        self.text += line;
        self.text.push('\n');
    }

    /// A tagged paragraph's tag; its words follow.
    pub(super) fn item(&mut self, tag: &str) {
        self.line(".TP");
        self.line(&marked(tag));
    }

    /// Words that go on where the last left off; each sentence begins a line.
    pub(super) fn prose(&mut self, words: &str) {
        let mut line = String::new();
        let mut ends = false;
        for word in units(words) {
            if !line.is_empty() && (ends || marked(&format!("{line} {word}")).len() > WIDTH) {
                self.prose_line(&line);
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += &word;
            ends = word.ends_with(['.', ':', '?']);
        }
        self.prose_line(&line);
    }

    /// A line of words, which begins with no request: escaped, only a full stop could make one.
    fn prose_line(&mut self, line: &str) {
        let guard = if line.starts_with('.') { "\\&" } else { "" };
        self.line(&format!("{guard}{}", marked(line)));
    }

    /// Paragraphs separated by empty lines.
    pub(super) fn paragraphs(&mut self, words: &str) {
        for (index, words) in words.split("\n\n").enumerate() {
            if index > 0 {
                self.line(".PP");
            }
            self.prose(words);
        }
    }

    /// The paragraphs of an item.
    pub(super) fn item_paragraphs(&mut self, words: &str) {
        for (index, words) in words.split("\n\n").enumerate() {
            if index > 0 {
                self.line(".IP");
            }
            self.prose(words);
        }
    }

    /// Another paragraph of an item.
    pub(super) fn more(&mut self, words: &str) {
        self.line(".IP");
        self.item_paragraphs(words);
    }

    /// Paragraphs, items (`tag :: words`) and examples (lines that begin with four blanks).
    pub(super) fn blocks(&mut self, words: &str) {
        for (index, block) in words.split("\n\n").enumerate() {
            if let Some((tag, words)) = block.split_once(" :: ") {
                self.item(tag);
                self.prose(words);
            } else if block.starts_with("    ") {
                self.example(block);
            } else {
                if index > 0 {
                    self.line(".PP");
                }
                self.prose(block);
            }
        }
    }

    fn example(&mut self, lines: &str) {
        self.line(".PP");
        self.line(".RS 4");
        self.line(".nf");
        for line in lines.lines() {
            let line = line.strip_prefix("    ").unwrap_or(line);
            let guard = if line.starts_with('.') { "\\&" } else { "" };
            self.line(&format!("{guard}{}", escape(line)));
        }
        self.line(".fi");
        self.line(".RE");
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// Words, of which what a mark encloses is one.
fn units(words: &str) -> Vec<String> {
    let mut units: Vec<String> = Vec::new();
    let mut open = None;
    for word in words.split_whitespace() {
        match units.last_mut().filter(|_| open.is_some()) {
            Some(unit) => *unit += &format!(" {word}"),
            None => units.push(word.to_owned()),
        }
        for letter in word.chars().filter(|letter| matches!(letter, '`' | '*')) {
            match open {
                None => open = Some(letter),
                Some(mark) if mark == letter => open = None,
                Some(_) => {}
            }
        }
    }
    units
}

/// Characters as they are to be read: groff makes typographic ones of some.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        match letter {
            '\\' => escaped += r"\e",
            '-' => escaped += r"\-",
            '\'' => escaped += r"\(aq",
            '`' => escaped += r"\(ga",
            '^' => escaped += r"\(ha",
            '~' => escaped += r"\(ti",
            _ => escaped.push(letter),
        }
    }
    escaped
}

/// Escaped, with the marks made fonts. A mark without its twin in the line is itself.
fn marked(words: &str) -> String {
    let mut out = String::new();
    let mut rest = words;
    while let Some(at) = rest.find(['`', '*']) {
        let (before, from) = rest.split_at(at);
        let (mark, inside) = from.split_at(1);
        let Some((inside, after)) = inside.split_once(mark) else {
            break;
        };
        let font = if mark == "`" { 'B' } else { 'I' };
        out += &escape(before);
        out += &format!("\\f{font}{}\\fR", escape(inside));
        rest = after;
    }
    out + &escape(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prose(words: &str) -> String {
        let mut page = Roff {
            text: String::new(),
        };
        page.prose(words);
        page.text
    }

    #[test]
    fn what_roff_would_take_for_its_own() {
        assert_eq!(prose(r"a-b \n 'c'"), "a\\-b \\en \\(aqc\\(aq\n");
        assert_eq!(prose("See. .x"), "See.\n\\&.x\n");
        assert_eq!(prose("'x"), "\\(aqx\n");
    }

    #[test]
    fn marks() {
        assert_eq!(prose("`-k` *N* 2*3"), "\\fB\\-k\\fR \\fIN\\fR 2*3\n");
    }

    #[test]
    fn a_mark_is_not_torn() {
        let words = format!("{} `a b c d e f g h i j k l m n o p`", "word ".repeat(15));
        assert!(!prose(&words).contains("\\(ga"), "{}", prose(&words));
    }
}
