//! A small tree of an XML text that knows where each of its parts stands, so that changing one leaves all others byte
//! for byte as they were. Trusts nothing it reads: sizes and depth are limited, declared entities are refused.

use std::cmp::Reverse;
use std::ops::Range;

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};

/// Elements within elements. libvirt's descriptions have about ten; a tree is taken down by recursion.
const MAX_DEPTH: usize = 100;
/// The longest description. Real ones have some kilobytes.
const MAX_BYTES: usize = 4 << 20;

/// An element with what is in it.
#[derive(Debug, Default)]
pub(super) struct Element {
    /// Its name, with its prefix if it has one.
    pub name: String,
    /// Its attributes, in their order.
    pub attributes: Vec<Attribute>,
    /// The text in it, that of its children left out.
    pub text: String,
    /// The elements in it.
    pub children: Vec<Element>,
    /// From its `<` to behind its last `>`.
    pub range: Range<usize>,
    /// What is between its tags; empty and at its end in `<name/>`.
    inner: Range<usize>,
}

/// An attribute of an element.
#[derive(Debug)]
pub(super) struct Attribute {
    pub name: String,
    pub value: String,
    /// The value without its quotes.
    value_range: Range<usize>,
    /// From the name to behind the second quote.
    range: Range<usize>,
}

impl Element {
    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|attribute| attribute.name == name);
        found.map(|attribute| attribute.value.as_str())
    }

    /// Whether an attribute has this value.
    pub fn is(&self, attribute: &str, value: &str) -> bool {
        self.attribute(attribute) == Some(value)
    }

    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text in it, without space around it; `None` if there is no other.
    pub fn trimmed(&self) -> Option<&str> {
        Some(self.text.trim()).filter(|text| !text.is_empty())
    }
}

/// Reads an XML text with one element that has all the others.
pub(super) fn parse(xml: &str) -> Result<Element, String> {
    if xml.len() > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    if xml.starts_with('\u{feff}') {
        // The reader would count from behind it.
        return Err("it starts with a byte order mark".to_owned());
    }
    let mut reader = Reader::from_str(xml);
    let mut open = vec![Element::default()];
    loop {
        let start = position(&reader);
        let event = reader.read_event().map_err(|error| error.to_string())?;
        let end = position(&reader);
        // The element that encloses the whole text is never taken off: the reader refuses an end without a start.
        let Some(here) = open.last_mut() else {
            return Err("it closes more elements than it opens".to_owned());
        };
        match event {
            Event::Start(tag) => {
                let element = element(xml, &tag, start..end)?;
                if open.len() > MAX_DEPTH {
                    return Err(format!("its elements are nested deeper than {MAX_DEPTH}"));
                }
                open.push(element);
            }
            Event::Empty(tag) => here.children.push(element(xml, &tag, start..end)?),
            Event::End(_) => {
                here.inner.end = start;
                here.range.end = end;
                if let (Some(closed), Some(parent)) = (open.pop(), open.last_mut()) {
                    parent.children.push(closed);
                }
            }
            Event::Text(text) => here.text += &text.decode().map_err(|error| error.to_string())?,
            Event::CData(text) => here.text += &text.decode().map_err(|error| error.to_string())?,
            Event::GeneralRef(reference) => {
                let name = reference.decode().map_err(|error| error.to_string())?;
                match reference.resolve_char_ref().map_err(|error| error.to_string())? {
                    Some(char) => here.text.push(char),
                    None => {
                        here.text += resolve_predefined_entity(&name).ok_or(format!("it has an unknown &{name};"))?;
                    }
                }
            }
            Event::DocType(_) => return Err("it has a document type, which libvirt never writes".to_owned()),
            Event::Eof => break,
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
    match (open.pop(), open.pop()) {
        (Some(mut all), None) if all.children.len() == 1 => Ok(all.children.remove(0)),
        (Some(_), None) => Err("it is not one element".to_owned()),
        _ => Err("it ends within an element".to_owned()),
    }
}

fn position(reader: &Reader<&[u8]>) -> usize {
    // At most the length of the text.
    usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX)
}

fn element(xml: &str, tag: &BytesStart<'_>, range: Range<usize>) -> Result<Element, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut attributes = Vec::new();
    for attribute in tag.attributes() {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = attribute.unescape_value().map_err(|error| error.to_string())?;
        let key = place_of(xml, attribute.key.as_ref());
        let place = place_of(xml, &attribute.value);
        let (Some(key), Some(place)) = (key, place) else {
            return Err("an attribute of it has no place".to_owned());
        };
        attributes.push(Attribute {
            name: text(attribute.key.as_ref()),
            value: value.into_owned(),
            range: key.start..place.end + 1,
            value_range: place,
        });
    }
    Ok(Element {
        name: text(tag.name().as_ref()),
        attributes,
        inner: range.end..range.end,
        range,
        ..Element::default()
    })
}

/// Where a part that was borrowed from the text stands in it.
fn place_of(xml: &str, part: &[u8]) -> Option<Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(xml.as_ptr() as usize)?;
    let range = start..start.checked_add(part.len())?;
    (xml.as_bytes().get(range.clone())? == part).then_some(range)
}

/// Changes to a text, made all at once.
#[derive(Debug)]
pub(super) struct Edits<'a> {
    xml: &'a str,
    edits: Vec<(Range<usize>, String)>,
}

impl<'a> Edits<'a> {
    pub fn new(xml: &'a str) -> Self {
        Self { xml, edits: Vec::new() }
    }

    /// Sets the text of an element; what was in it goes.
    pub fn set_text(&mut self, element: &Element, text: &str) {
        let text = quick_xml::escape::escape(text).into_owned();
        if self.is_short(element) {
            let slash = element.range.end.saturating_sub(2);
            let closing = format!(">{text}</{}>", element.name);
            self.edits.push((slash..element.range.end, closing));
        } else {
            self.edits.push((element.inner.clone(), text));
        }
    }

    /// Sets an attribute, which may be new.
    pub fn set_attribute(&mut self, element: &Element, name: &str, value: &str) {
        // A value stands in quotes of either kind; both are escaped.
        let value = quick_xml::escape::escape(value).into_owned();
        match element.attributes.iter().find(|attribute| attribute.name == name) {
            Some(attribute) => self.edits.push((attribute.value_range.clone(), value)),
            None => {
                let place = element.range.start + 1 + element.name.len();
                self.edits.push((place..place, format!(" {name}='{value}'")));
            }
        }
    }

    /// Removes an attribute, if it is there.
    pub fn remove_attribute(&mut self, element: &Element, name: &str) {
        if let Some(attribute) = element.attributes.iter().find(|attribute| attribute.name == name) {
            let start = self.without_space_before(attribute.range.start);
            self.edits.push((start..attribute.range.end, String::new()));
        }
    }

    /// Removes an element and the space before it.
    pub fn remove(&mut self, element: &Element) {
        let start = self.without_space_before(element.range.start);
        self.edits.push((start..element.range.end, String::new()));
    }

    /// Puts something else in the place of an element.
    pub fn replace(&mut self, element: &Element, with: &str) {
        self.edits.push((element.range.clone(), with.to_owned()));
    }

    /// Puts an element before another one.
    pub fn insert_before(&mut self, element: &Element, new: &str) {
        self.edits
            .push((element.range.start..element.range.start, new.to_owned()));
    }

    /// Puts an element into another one, before what is there.
    pub fn insert_first(&mut self, parent: &Element, new: &str) {
        if self.is_short(parent) {
            let slash = parent.range.end.saturating_sub(2);
            let closing = format!(">{new}</{}>", parent.name);
            self.edits.push((slash..parent.range.end, closing));
        } else {
            self.edits
                .push((parent.inner.start..parent.inner.start, new.to_owned()));
        }
    }

    /// The changed text. A change within what another removes is dropped.
    pub fn apply(mut self) -> String {
        self.edits.sort_by_key(|(range, _)| (range.start, Reverse(range.end)));
        let (mut out, mut at) = (String::with_capacity(self.xml.len()), 0);
        for (range, text) in &self.edits {
            if range.start < at {
                continue;
            }
            out += self.xml.get(at..range.start).unwrap_or_default();
            out += text;
            at = range.end;
        }
        out + self.xml.get(at..).unwrap_or_default()
    }

    /// Whether it is written as `<name/>`.
    fn is_short(&self, element: &Element) -> bool {
        element.inner.start == element.range.end
    }

    fn without_space_before(&self, place: usize) -> usize {
        let before = self.xml.get(..place).unwrap_or_default();
        before.trim_end_matches([' ', '\t', '\n', '\r']).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_leave_everything_else_as_it_was() {
        let xml = "<?xml version='1.0'?>\n<a  x = \"1\">\n  <b>t&lt;&#65;<![CDATA[&]]></b><!-- c -->\n  <c/>\n  <d e='\u{e9}'  f='g'/>\n</a>\n";
        let root = parse(xml).expect("parses");
        assert_eq!((root.attribute("x"), root.name.as_str()), (Some("1"), "a"));
        assert_eq!(root.child("b").expect("b").text, "t<A&");
        assert_eq!(Edits::new(xml).apply(), xml);
        let mut edits = Edits::new(xml);
        edits.set_attribute(&root, "x", "'2\"");
        edits.set_attribute(&root, "y", "3");
        edits.set_text(root.child("b").expect("b"), "<");
        edits.set_text(root.child("c").expect("c"), "new");
        edits.remove_attribute(root.child("d").expect("d"), "f");
        assert_eq!(
            edits.apply(),
            "<?xml version='1.0'?>\n<a y='3'  x = \"&apos;2&quot;\">\n  <b>&lt;</b><!-- c -->\n  <c>new</c>\n  <d e='\u{e9}'/>\n</a>\n"
        );
        let mut edits = Edits::new(xml);
        edits.remove_attribute(root.child("d").expect("d"), "f");
        edits.remove(root.child("d").expect("d"));
        edits.remove(root.child("b").expect("b"));
        let expected = "<?xml version='1.0'?>\n<a  x = \"1\"><!-- c -->\n  <c/>\n</a>\n";
        assert_eq!(edits.apply(), expected);
    }

    #[test]
    fn what_is_no_xml_or_goes_too_far_is_refused() {
        let deep = "<a>".repeat(10_000) + &"</a>".repeat(10_000);
        let long = format!("<a>{}</a>", " ".repeat(MAX_BYTES));
        let bad = [
            "",
            "text",
            "<a>",
            "</a>",
            "<a></b>",
            "<a/><b/>",
            "<a b='1' b='2'/>",
            "<a b=1/>",
            "<a>&nope;</a>",
            "<a b='&nope;'/>",
            "<a>&#0;</a>",
            "<a",
            "<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>",
            "\u{feff}<a/>",
            &deep,
            &long,
        ];
        for xml in bad {
            assert!(parse(xml).is_err(), "{}", &xml[..xml.len().min(60)]);
        }
    }
}
