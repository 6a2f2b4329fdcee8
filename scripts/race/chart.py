"""The result as an SVG for a README: a group of bars for each line that takes time, readable on light and dark pages."""

from html import escape

from .report import figure

WIDTH, LEFT, BAR, GAP, GROUP_GAP, HEAD = 880, 240, 15, 3, 20, 84
SPACE = WIDTH - LEFT - 130

STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f; }
  .title { font-size: 15px; font-weight: 600; }
  .group { font-weight: 600; }
  .small { fill: #57606a; }
  .lead { fill: #0969da; }
  .peer { fill: #afb8c1; }
  .limit { stroke: #cf222e; stroke-width: 2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .small { fill: #9198a1; }
    .lead { fill: #4493f8; }
    .peer { fill: #545d68; }
    .limit { stroke: #ff7b72; }
  }
"""


def draw(lines, lead, title, subtitles):
    """The SVG's text; the subtitles are a line each. Bars are as long as the time (or the bytes), each group to a scale of its own."""
    body, top = [], HEAD
    shown = [line for line in lines if not line["more_is_better"] and line["key"] != "memory" and lead in line["contenders"]]
    for line in shown:
        entries, unit = line["contenders"], line["unit"]
        limit = line.get("limit")
        longest = max([entry["median"] for entry in entries.values()] + ([limit["value"]] if limit else []))
        scale = SPACE / longest if longest else 0
        height = len(entries) * (BAR + GAP) - GAP
        body.append(f'<text class="group" x="4" y="{top + BAR - 3}">{escape(line["title"])}</text>')
        for number, (name, entry) in enumerate(entries.items()):
            y = top + number * (BAR + GAP)
            length = max(1, entry["median"] * scale)
            kind = "lead" if name == lead else "peer"
            body.append(f'<text class="small" x="{LEFT - 6}" y="{y + BAR - 3}" text-anchor="end">{escape(name)}</text>')
            body.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>')
            body.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + BAR - 3}">{figure(entry["median"], unit)} {unit}</text>')
        if limit:
            x = LEFT + limit["value"] * scale
            note = f"{limit['name']}: {figure(limit['value'], unit)} {unit}"
            body.append(
                f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 3}" y2="{top + height + 3}"><title>{escape(note)}</title></line>'
            )
        top += height + GROUP_GAP
    legend = "Shorter is better. The line across the bars is the machine's limit: the slowest of reading, compressing, hashing and writing."
    small = [
        f'<text class="small" x="4" y="{36 + 16 * number}">{escape(text)}</text>'
        for number, text in enumerate([*subtitles, legend])
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + 10}" viewBox="0 0 {WIDTH} {top + 10}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<text class="title" x="4" y="18">{escape(title)}</text>',
            *small,
            *body,
            "</svg>",
            "",
        ]
    )
