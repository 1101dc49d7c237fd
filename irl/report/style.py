"""The style sheet of the report: light and dark, wide and narrow, screen and paper.

Contrasts (WCAG 2.2, tested): text at least 4.5 to 1 on what it stands on, lines and marks of figures 3 to 1.
"""

LIGHT = {
    "page": "#f6f7f9", "card": "#ffffff", "ink": "#1b2430",
    "quiet": "#5a6675", "line": "#dfe4ea", "head": "#f0f3f6", "accent": "#1a5fd0",
    "warn": "#b92e1b", "warn-card": "#fdf0ee",
    "c0": "#7c8794", "c1": "#1f6feb", "c2": "#d9730d", "c3": "#16895a",
    "c4": "#8e4ec6", "c5": "#c2255c", "c6": "#0b8a9e", "c7": "#8a6d0b",
}  # fmt: skip
DARK = {
    "page": "#0f141a", "card": "#171e26", "ink": "#e5eaf0",
    "quiet": "#9aa7b5", "line": "#2b3541", "head": "#1e2731", "accent": "#6ea8ff",
    "warn": "#ff8672", "warn-card": "#2c1b1a",
    "c0": "#97a3b0", "c1": "#6ea8ff", "c2": "#ffa656", "c3": "#4cc38a",
    "c4": "#c69aee", "c5": "#ff8fb1", "c6": "#4dc4d6", "c7": "#d8bb55",
}  # fmt: skip


def _declared(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_declared(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_declared(DARK)} }} }}
@media print {{ :root {{ color-scheme: light; {_declared(LIGHT)} }} }}
"""
    + """
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word;
}
main { max-width: 1120px; margin: 0 auto; padding: 2.2rem 1.2rem 3rem; }
header { margin-bottom: 1.4rem; }
h1 { font-size: clamp(1.6rem, 4.2vw, 2.4rem); line-height: 1.15; margin: 0.1rem 0 0.5rem; letter-spacing: -0.015em; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 0 0 0.8rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
p, ul { margin: 0.4rem 0 0.8rem; max-width: 78ch; }
a { color: var(--accent); }
.eyebrow { color: var(--quiet); font-size: 0.85rem; margin: 0; }
.lead, .quiet, .note, footer { color: var(--quiet); }
.note, footer { font-size: 0.85rem; }
nav ul {
  display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; list-style: none;
  padding: 0; margin: 0.6rem 0 0; max-width: none;
}
nav a { text-decoration: none; font-size: 0.92rem; }
nav a:hover { text-decoration: underline; }
section, .warn {
  background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; padding: 1.3rem 1.5rem; margin: 0 0 1.2rem;
}
.warn { background: var(--warn-card); border-color: var(--warn); border-left-width: 5px; }
.warn h3 { margin: 0 0 0.3rem; color: var(--warn); }
.warn ul { margin-bottom: 0; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr));
  gap: 0.8rem 1.4rem; margin: 0 0 1rem;
}
.facts dt { color: var(--quiet); font-size: 0.82rem; }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.grid {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17.5rem), 1fr));
  gap: 0.9rem 1.4rem; margin: 0.6rem 0 1rem;
}
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 2rem; }
figure { margin: 0; max-width: 27rem; }
figcaption { font-weight: 600; font-size: 0.9rem; margin-bottom: 0.15rem; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: inherit; }
.legend {
  display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; list-style: none;
  padding: 0; margin: 0.3rem 0; font-size: 0.88rem;
}
.legend svg { width: 26px; height: 10px; margin-right: 0.4rem; stroke-width: 2.6; vertical-align: middle; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.42rem 0.8rem; text-align: left; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; background: var(--head); font-size: 0.8rem; vertical-align: bottom; min-width: 5.5rem; }
tbody th { font-weight: 600; white-space: nowrap; }
tbody th.long, .long { white-space: normal; min-width: 13rem; }
tbody th:first-child, thead th:first-child { position: sticky; left: 0; background: var(--card); }
thead th:first-child { background: var(--head); }
tbody .flag th:first-child { background: var(--warn-card); }
.n { text-align: right; white-space: pre; }
thead .n { white-space: normal; }
.flag th, .flag td { background: var(--warn-card); color: var(--warn); }
details { margin: 0.9rem 0 0; }
summary { cursor: pointer; font-weight: 600; font-size: 0.95rem; margin-bottom: 0.5rem; }
footer { margin-top: 1.5rem; }
@media (max-width: 40rem) {
  main { padding: 1.2rem 0.7rem 2rem; }
  section, .warn { padding: 1rem 0.9rem; border-radius: 10px; }
  ul { padding-left: 1.2rem; }
  .facts { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
  th, td { padding: 0.38rem 0.55rem; }
  tbody th.long, .long { min-width: 9rem; }
}
@media print {
  body { background: none; font-size: 11pt; }
  section { border: 0; padding: 0; }
  nav { display: none; }
  figure, tr, .warn { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 7.5pt; }
  th, td { padding: 0.15rem 0.3rem; overflow-wrap: anywhere; }
  thead th, .long, tbody th.long { min-width: 0; font-size: 7.5pt; }
  tbody th, .n { white-space: normal; }
  tbody th:first-child, thead th:first-child { position: static; }
}
"""
)
