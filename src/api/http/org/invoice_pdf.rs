//! An invoice as a PDF: pages of text in the fonts that every reader has, so no font is embedded. These have the letters of
//! Western European languages; others are printed as `?`.

use orgstream_events::OrgId;
use pdf_writer::{Content, Finish, Name, Pdf, Rect, Ref, Str, TextStr};
use serde::Serialize;

use super::invoices::{InvoiceDetails, InvoiceLineView};

/// A4, in points.
const WIDTH: f32 = 595.0;
const HEIGHT: f32 = 842.0;
const MARGIN: f32 = 50.0;
const LEADING: f32 = 13.0;
/// The size of the text of lines, and the characters of it that fit between the margins; what is longer is cut.
const SIZE: f32 = 9.5;
const COLUMNS: usize = 85;
/// The lines of a page.
const LINES: usize = 50;

const CATALOG: Ref = Ref::new(1);
const PAGES: Ref = Ref::new(2);
const HEAD_FONT: Ref = Ref::new(3);
const LINE_FONT: Ref = Ref::new(4);
const INFO: Ref = Ref::new(5);
/// The first of the references of pages, which have two each.
const FIRST: i32 = 6;

/// Returns the invoice of an organization as the bytes of a PDF. The same invoice has the same bytes.
pub(super) fn render(org: OrgId, name: &str, details: &InvoiceDetails) -> Vec<u8> {
    let InvoiceDetails { invoice, lines } = details;
    let title = format!("Invoice {}", invoice.number);
    let mut text = vec![
        name.to_owned(),
        org.to_string(),
        String::new(),
        format!("Month     {} (UTC)", invoice.month),
        format!("Status    {}", invoice.status.name()),
        format!("Final     {}", invoice.final_at),
        format!("Plan      {}, version {}", invoice.plan, invoice.plan_version),
    ];
    if let (Some(at), Some(payment)) = (invoice.settled_at, &invoice.payment) {
        text.push(format!("Paid      {at}, {payment}"));
    }
    text.push(String::new());
    text.push(row("", "month", "quantity", "per million", invoice.currency.as_str()));
    text.push("-".repeat(COLUMNS));
    for line in lines {
        let (what, price) =
            (describe(line), line.price_per_million.map_or_else(String::new, |price| price.to_string()));
        let (quantity, amount) = (line.quantity.to_string(), line.amount.to_string());
        text.push(row(&what, &line.month.to_string(), &quantity, &price, &amount));
    }
    text.push("-".repeat(COLUMNS));
    text.push(row("total", "", "", "", &invoice.total.to_string()));

    let pages: Vec<&[String]> = text.chunks(LINES).collect();
    let mut pdf = Pdf::new();
    pdf.catalog(CATALOG).pages(PAGES);
    pdf.document_info(INFO).title(TextStr(&format!("{title}, {name}")));
    let page_refs: Vec<(Ref, Ref)> =
        (FIRST..).step_by(2).map(|id| (Ref::new(id), Ref::new(id + 1))).take(pages.len()).collect();
    let count = i32::try_from(pages.len()).unwrap_or(i32::MAX);
    pdf.pages(PAGES).kids(page_refs.iter().map(|(page, _)| *page)).count(count);
    for (id, font) in [(HEAD_FONT, "Helvetica-Bold"), (LINE_FONT, "Courier")] {
        pdf.type1_font(id).base_font(Name(font.as_bytes())).encoding_predefined(Name(b"WinAnsiEncoding"));
    }
    for (number, ((page_ref, content_ref), lines)) in (1..).zip(page_refs.into_iter().zip(&pages)) {
        let mut page = pdf.page(page_ref);
        page.media_box(Rect::new(0.0, 0.0, WIDTH, HEIGHT)).parent(PAGES).contents(content_ref);
        let mut resources = page.resources();
        resources.fonts().pair(Name(b"Head"), HEAD_FONT).pair(Name(b"Line"), LINE_FONT);
        resources.finish();
        page.finish();
        let mut content = Content::new();
        content.begin_text().set_font(Name(b"Head"), 18.0).next_line(MARGIN, HEIGHT - MARGIN - 18.0);
        content.show(Str(&encoded(&title))).end_text();
        content.begin_text().set_font(Name(b"Line"), SIZE).next_line(MARGIN, HEIGHT - MARGIN - 48.0);
        for line in *lines {
            let line: String = line.chars().take(COLUMNS).collect();
            content.show(Str(&encoded(&line))).next_line(0.0, -LEADING);
        }
        content.end_text();
        content.begin_text().set_font(Name(b"Line"), SIZE).next_line(MARGIN, MARGIN);
        content.show(Str(format!("page {number} of {}", pages.len()).as_bytes())).end_text();
        pdf.stream(content_ref, &content.finish());
    }
    pdf.finish()
}

fn describe(line: &InvoiceLineView) -> String {
    let meter = line.meter.as_ref().map_or_else(String::new, |meter| format!(" {meter}"));
    let source = line.source.map_or_else(String::new, |source| format!(" {}", name_of(&source)));
    format!("{}{meter}{source}", name_of(&line.line_type))
}

/// Returns the name that a value has in answers.
fn name_of(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Returns a row of 85 characters; a longer description is cut.
fn row(what: &str, month: &str, quantity: &str, price: &str, amount: &str) -> String {
    let what: String = what.chars().take(26).collect();
    format!("{what:<26} {month:<7} {quantity:>20} {price:>12} {amount:>16}")
}

/// Encodes a text as `WinAnsi`, whose upper half is that of Latin-1 but for some signs.
fn encoded(text: &str) -> Vec<u8> {
    let byte = |char: char| match char {
        ' '..='~' | '\u{a0}'..='\u{ff}' => u8::try_from(u32::from(char)).unwrap_or(b'?'),
        '€' => 0x80,
        '–' => 0x96,
        '—' => 0x97,
        '‘' => 0x91,
        '’' => 0x92,
        '“' => 0x93,
        '”' => 0x94,
        _ => b'?',
    };
    text.chars().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_as_wide_as_the_page_and_letters_are_those_of_the_font() {
        let long = "usage a_meter_with_a_name_of_31_chars allowance";
        let row = row(long, "2026-03", "1000000000000.000001", "1000000000", "1000000000.000001");
        assert!(row.len() <= COLUMNS + 1, "{row}");
        assert_eq!(encoded("Ä €5 – 日本"), [0xc4, b' ', 0x80, b'5', b' ', 0x96, b' ', b'?', b'?']);
    }
}
