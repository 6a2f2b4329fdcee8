//! A small tree of an XML text. Trusts nothing it reads: limits size and depth, and refuses declared entities.

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event, attributes};

/// Limit of nested elements. libvirt's descriptions have about ten; dropping a tree is recursive.
const MAX_DEPTH: usize = 100;
/// Limit of a description's length. Real ones have some kilobytes.
const MAX_BYTES: usize = 4 << 20;

/// Limit of one tag's attributes. libvirt writes about ten, and `<metadata>` has whatever its author puts there. The
/// reader compares each name with all before it, so the time for a tag grows with the square of this.
const MAX_ATTRIBUTES: usize = 256;

/// An element with its content.
#[derive(Debug, Default)]
pub(super) struct Element {
    /// Name, with its prefix if it has one.
    pub name: String,
    /// Attributes, in order.
    pub attributes: Vec<Attribute>,
    /// Text of the element, without that of its children.
    pub text: String,
    /// Child elements.
    pub children: Vec<Element>,
}

/// An attribute of an element.
#[derive(Debug)]
pub(super) struct Attribute {
    pub name: String,
    pub value: String,
}

impl Element {
    /// Returns the value of an attribute.
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|attribute| attribute.name == name);
        found.map(|attribute| attribute.value.as_str())
    }

    /// Tests that an attribute has this value.
    pub(super) fn is(&self, attribute: &str, value: &str) -> bool {
        self.attribute(attribute) == Some(value)
    }

    /// Returns the first child with this name.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// Returns all children with this name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Returns its text without surrounding space; `None` if nothing is left.
    pub(super) fn trimmed(&self) -> Option<&str> {
        Some(self.text.trim()).filter(|text| !text.is_empty())
    }
}

/// Parses an XML text with a single root element.
pub(super) fn parse(xml: &str) -> Result<Element, String> {
    if xml.len() > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    let mut reader = Reader::from_str(xml);
    let mut open = vec![Element::default()];
    loop {
        let event = reader.read_event().map_err(|error| error.to_string())?;
        // The bottom element, which stands for the whole text, is never popped: the reader refuses an end without a
        // start.
        let Some(here) = open.last_mut() else {
            return Err("it closes more elements than it opens".to_owned());
        };
        match event {
            Event::Start(tag) => {
                let element = element(&tag)?;
                if open.len() > MAX_DEPTH {
                    return Err(format!("its elements are nested deeper than {MAX_DEPTH}"));
                }
                open.push(element);
            }
            Event::Empty(tag) => here.children.push(element(&tag)?),
            Event::End(_) => {
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
        (Some(_), None) => Err("it does not have exactly one root element".to_owned()),
        _ => Err("it ends inside an element".to_owned()),
    }
}

/// Yields the attributes of a tag, and an error after too many of them.
pub(super) fn attributes_of<'a>(
    tag: &'a BytesStart<'_>,
) -> impl Iterator<Item = Result<attributes::Attribute<'a>, String>> {
    let numbered = tag.attributes().take(MAX_ATTRIBUTES + 1).enumerate();
    numbered.map(|(number, attribute)| match number < MAX_ATTRIBUTES {
        true => attribute.map_err(|error| error.to_string()),
        false => Err(format!("a tag has more than {MAX_ATTRIBUTES} attributes")),
    })
}

fn element(tag: &BytesStart<'_>) -> Result<Element, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut attributes = Vec::new();
    for attribute in attributes_of(tag) {
        let attribute = attribute?;
        let value = attribute.unescape_value().map_err(|error| error.to_string())?;
        attributes.push(Attribute {
            name: text(attribute.key.as_ref()),
            value: value.into_owned(),
        });
    }
    Ok(Element {
        name: text(tag.name().as_ref()),
        attributes,
        ..Element::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_joined_from_its_parts() {
        let root =
            parse("<?xml version='1.0'?>\n<a  x = \"1\">\n  <b>t&lt;&#65;<![CDATA[&]]></b><!-- c -->\n  <c/>\n</a>\n");
        let root = root.expect("parses");
        assert_eq!((root.attribute("x"), root.name.as_str()), (Some("1"), "a"));
        assert_eq!(root.child("b").expect("b").text, "t<A&");
    }

    /// Reading a tag of 4 MiB would take minutes; cut off at the limit it takes no time.
    #[test]
    fn a_tag_with_too_many_attributes_is_refused_early() {
        let tag = |count: usize| {
            let attributes: String = (0..count).map(|number| format!(" a{number}=''")).collect();
            format!("<a><b{attributes}/></a>")
        };
        let root = parse(&tag(MAX_ATTRIBUTES)).expect("parses");
        assert_eq!(root.children[0].attributes.len(), MAX_ATTRIBUTES);
        let error = parse(&tag(MAX_BYTES / 12)).expect_err("too many");
        assert!(error.contains("256 attributes"), "{error}");
    }

    #[test]
    fn invalid_or_oversized_xml_is_refused() {
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
            &deep,
            &long,
        ];
        for xml in bad {
            assert!(parse(xml).is_err(), "{}", &xml[..xml.len().min(60)]);
        }
    }
}
