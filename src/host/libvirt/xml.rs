//! Elements of an XML text and their ranges in it. Trusts nothing it reads: limits size, depth and the parser's time. The
//! parser refuses document types, and with them declared entities.

use std::iter::from_fn;
use std::ops::Range;

use roxmltree::{Attribute, Document, Node};

/// Limit of nested elements. libvirt's descriptions have about ten.
const MAX_DEPTH: usize = 100;
/// Limit of a description's length. Real ones have some kilobytes.
const MAX_BYTES: usize = 4 << 20;

/// Limit of one tag's attributes. libvirt writes about ten, and `<metadata>` has whatever its author puts there. The
/// parser compares each attribute with all before it, so the time for a tag grows with the square of this.
const MAX_ATTRIBUTES: usize = 256;
/// Limit of declared namespaces. The parser compares each with all others for every element that declares one.
const MAX_NAMESPACES: usize = 256;
/// Limit of a namespace's length. The parser compares the namespaces of two attributes before their names.
const MAX_NAMESPACE_BYTES: usize = 1024;

/// An element.
#[derive(Debug, Clone, Copy)]
pub(super) struct Element<'a>(Node<'a, 'a>);

/// A part of the text: the value of an attribute, or all between the two tags of an element.
#[derive(Debug)]
pub(super) struct Span {
    /// Bytes of the text.
    pub range: Range<usize>,
    /// Characters, without surrounding space if they are between two tags.
    pub value: String,
}

impl<'a> Element<'a> {
    /// Returns the element that contains all others.
    pub(super) fn root(document: &'a Document<'_>) -> Self {
        Self(document.root_element())
    }

    /// Returns the name, without its prefix if it has one.
    pub(super) fn name(self) -> &'a str {
        self.0.tag_name().name()
    }

    /// Tests the name. A name with a prefix is another one, e.g. `qemu:disk`.
    pub(super) fn is_named(self, name: &str) -> bool {
        self.name() == name && self.0.tag_name().namespace().is_none()
    }

    /// Returns the value of an attribute.
    pub(super) fn attribute(self, name: &str) -> Option<&'a str> {
        self.find(name).map(|attribute| attribute.value())
    }

    /// Tests that an attribute has this value.
    pub(super) fn is(self, attribute: &str, value: &str) -> bool {
        self.attribute(attribute) == Some(value)
    }

    /// Returns the first child with this name.
    pub(super) fn child(self, name: &str) -> Option<Self> {
        self.all(name).into_iter().next()
    }

    /// Returns all elements with this path, e.g. `devices/disk`.
    pub(super) fn all(self, path: &str) -> Vec<Self> {
        path.split('/').fold(vec![self], |parents, name| {
            let children = parents.iter().flat_map(|parent| parent.0.children()).map(Self);
            children.filter(|child| child.is_named(name)).collect()
        })
    }

    /// Returns the text of the element, without that of its children.
    pub(super) fn text(self) -> String {
        let texts = self.0.children().filter(Node::is_text);
        texts.filter_map(|text| text.text()).collect()
    }

    /// Returns its text without surrounding space; `None` if nothing is left.
    pub(super) fn trimmed(self) -> Option<String> {
        Some(self.text().trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// Returns the range of its tags and all between them.
    pub(super) fn range(self) -> Range<usize> {
        self.0.range()
    }

    /// Returns all between its tags; `None` if it is a single tag.
    pub(super) fn content(self) -> Option<Span> {
        let whole = self.range();
        let end = whole.start + self.0.document().input_text()[whole].rfind("</")?;
        let start = self.0.first_child().map_or(end, |child| child.range().start);
        Some(Span {
            range: start..end,
            value: self.text().trim().to_owned(),
        })
    }

    /// Returns the value of an attribute and its range.
    pub(super) fn value(self, name: &str) -> Option<Span> {
        let attribute = self.find(name)?;
        // `Attribute::range_value` is wrong if the name or the space around the equals sign is long.
        let end = attribute.range().end - 1;
        let (before, after) = self.0.document().input_text().split_at(end);
        let start = before.rfind(&after[..1])? + 1;
        Some(Span {
            range: start..end,
            value: attribute.value().to_owned(),
        })
    }

    /// Returns the range of an attribute, from its name to the quote after its value.
    pub(super) fn attribute_range(self, name: &str) -> Option<Range<usize>> {
        self.find(name).map(|attribute| attribute.range())
    }

    fn find(self, name: &str) -> Option<Attribute<'a, 'a>> {
        let mut own = self.0.attributes().filter(|attribute| attribute.namespace().is_none());
        own.find(|attribute| attribute.name() == name)
    }
}

/// Parses an XML text with a single root element.
pub(super) fn parse(xml: &str) -> Result<Document<'_>, String> {
    if xml.len() > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    check_attributes(xml)?;
    let document = Document::parse(xml).map_err(|error| error.to_string())?;
    let mut elements = document.descendants().filter(Node::is_element);
    // The document itself is an ancestor too.
    if elements.any(|element| element.ancestors().nth(MAX_DEPTH + 1).is_some()) {
        return Err(format!("its elements are nested deeper than {MAX_DEPTH}"));
    }
    Ok(document)
}

/// Refuses text that would keep the parser busy for minutes. Reads tags exactly as the parser does: a tag overlooked here
/// would not be limited.
fn check_attributes(xml: &str) -> Result<(), String> {
    /// Comments, CDATA and processing instructions, which have no attributes.
    const OTHERS: [(&str, &str); 3] = [("!--", "-->"), ("![CDATA[", "]]>"), ("?", "?>")];
    let (mut rest, mut namespaces) = (xml, 0);
    while let Some((_, tag)) = rest.split_once('<') {
        let other = OTHERS
            .iter()
            .find_map(|(open, close)| Some((tag.strip_prefix(open)?, close)));
        if let Some((inside, close)) = other {
            rest = inside.split_once(close).map_or("", |(_, after)| after);
            continue;
        }
        rest = tag;
        for (number, (name, value)) in attributes(tag).enumerate() {
            if number == MAX_ATTRIBUTES {
                return Err(format!("a tag has more than {MAX_ATTRIBUTES} attributes"));
            }
            if name.contains("xmlns") {
                namespaces += 1;
                if namespaces > MAX_NAMESPACES || value.len() > MAX_NAMESPACE_BYTES {
                    return Err(format!(
                        "it has more than {MAX_NAMESPACES} namespaces, or one of more than {MAX_NAMESPACE_BYTES} bytes"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Yields names and values of the attributes after a `<`. The names include what else precedes the quote.
fn attributes(tag: &str) -> impl Iterator<Item = (&str, &str)> {
    // The parser refuses a `<` in a value.
    let mut rest = tag.split('<').next().unwrap_or_default();
    from_fn(move || {
        let at = rest.find(['\'', '"', '>'])?;
        let (name, quoted) = rest.split_at(at);
        let quote = quoted.chars().next().filter(|&quote| quote != '>')?;
        let (value, after) = quoted[1..].split_once(quote)?;
        rest = after;
        Some((name, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_joined_from_its_parts() {
        let root =
            parse("<?xml version='1.0'?>\n<a  x = \"1\">\n  <b>t&lt;&#65;<![CDATA[&]]></b><!-- c -->\n  <c/>\n</a>\n");
        let document = root.expect("parses");
        let root = Element::root(&document);
        assert_eq!((root.attribute("x"), root.name()), (Some("1"), "a"));
        assert_eq!(root.child("b").expect("b").text(), "t<A&");
    }

    /// Reading a tag of 4 MiB would take minutes; cut off at the limit it takes no time.
    #[test]
    fn a_tag_with_too_many_attributes_is_refused_early() {
        let tag = |count: usize| {
            let attributes: String = (0..count).map(|number| format!(" a{number}=''")).collect();
            format!("<a><b{attributes}/></a>")
        };
        let many = tag(MAX_ATTRIBUTES);
        let document = parse(&many).expect("parses");
        let b = Element::root(&document).child("b").expect("b");
        assert_eq!(b.0.attributes().count(), MAX_ATTRIBUTES);
        for count in [MAX_ATTRIBUTES + 1, 200_000, MAX_BYTES / 12] {
            let error = parse(&tag(count)).expect_err("too many");
            assert!(error.contains("256 attributes"), "{error}");
        }
    }

    #[test]
    fn attributes_are_counted_wherever_they_are() {
        let many: String = (0..=MAX_ATTRIBUTES)
            .map(|number| format!("\ta{number} =\n\"'>\""))
            .collect();
        for before in [
            "<a>",
            "<a><!-- ' < --><?x <!-- ?>",
            "<a><![CDATA[<!--]]>",
            "<a b='>'>&lt;!--",
        ] {
            let error = parse(&format!("{before}<b{many}/></a>")).expect_err("too many");
            assert!(error.contains("256 attributes"), "{before}: {error}");
        }
        // Text that only looks like attributes is not counted.
        let many = many.replace('>', "&gt;");
        for (before, after) in [
            ("<b>", "</b>"),
            ("<!-- <b", " -->"),
            ("<![CDATA[<b", "]]>"),
            ("<?x <b", "?>"),
        ] {
            parse(&format!("<a>{before}{many}{after}</a>")).expect(before);
        }
    }

    /// Without the limits, each of these would take minutes.
    #[test]
    fn too_many_or_too_long_namespaces_are_refused_early() {
        let declare = |from: usize, count: usize| -> String {
            (from..from + count)
                .map(|number| format!(" xmlns:p{number}='u'"))
                .collect()
        };
        let nested = |levels: usize, count: usize| {
            let open = (0..levels).map(|level| format!("<a{}>", declare(level * count, count)));
            open.collect::<String>() + &"</a>".repeat(levels)
        };
        parse(&nested(16, MAX_NAMESPACES / 16)).expect("parses");
        let siblings = format!("<a{}>{}</a>", declare(0, 200), "<b xmlns:x='y'/>".repeat(100_000));
        let prefixed: String = (0..200).map(|number| format!(" p:a{number}=''")).collect();
        let prefixed = format!("<b{prefixed}/>").repeat(1000);
        let uri = |bytes: usize| format!("<a xmlns:p='{}'>{prefixed}</a>", "u".repeat(bytes));
        parse(&uri(MAX_NAMESPACE_BYTES)).expect("parses");
        for xml in [nested(80, 200), siblings, uri(1 << 20)] {
            let error = parse(&xml).expect_err("too many");
            assert!(error.contains("256 namespaces"), "{error}");
        }
    }

    #[test]
    fn elements_are_nested_up_to_the_limit() {
        let nested = |depth: usize| "<a>".repeat(depth) + "t" + &"</a>".repeat(depth);
        parse(&nested(MAX_DEPTH)).expect("parses");
        for depth in [MAX_DEPTH + 1, MAX_BYTES / 8] {
            let error = parse(&nested(depth)).expect_err("is refused");
            assert!(error.contains("deeper than 100"), "{error}");
        }
    }

    #[test]
    fn names_with_a_prefix_are_others() {
        let xml = "<a xmlns:q='u'><q:b c='1'/><b q:c='2'  c = '3'/></a>";
        let document = parse(xml).expect("parses");
        let b = Element::root(&document).child("b").expect("b");
        assert_eq!(
            (b.attribute("c"), Element::root(&document).all("b").len()),
            (Some("3"), 1)
        );
        assert!(parse("<a><q:b/></a>").is_err() && parse("<a q:b=''/>").is_err());
    }

    #[test]
    fn ranges_hold_what_is_between_quotes_or_tags() {
        let space = " ".repeat(300);
        let (name, value) = ("n".repeat(70_000), "'é&gt;>");
        let xml =
            format!("<a xmlns:q='>' {name}{space}={space}\"{value}\" b=''><c  >t<!-- </c -->&amp;</c ><d></d><e/></a>");
        let document = parse(&xml).expect("parses");
        let root = Element::root(&document);
        let found = |span: Option<Span>| span.map(|span| (&xml[span.range], span.value));
        assert_eq!(found(root.value(&name)), Some((value, "'é>>".to_owned())));
        assert_eq!(found(root.value("b")), Some(("", String::new())));
        assert_eq!(&xml[root.attribute_range("b").expect("b")], "b=''");
        let content = |name| found(root.child(name).expect("a child").content());
        assert_eq!(content("c"), Some(("t<!-- </c -->&amp;", "t&".to_owned())));
        assert_eq!((content("d"), content("e")), (Some(("", String::new())), None));
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
            "<!DOCTYPE a><a/>",
            &deep,
            &long,
        ];
        for xml in bad {
            assert!(parse(xml).is_err(), "{}", &xml[..xml.len().min(60)]);
        }
    }
}
