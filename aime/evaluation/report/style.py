"""The report's style sheet: light and dark after the reader's system, no fonts or files from elsewhere."""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #14181f;
  --muted: #5c6675; --rule: #e2e6ec; --grid: #edf0f4; --shade: #eef2f8;
  --good: #15803d; --s1: #2563eb; --s2: #64748b; --s3: #b45309;
  --s4: #059669; --s5: #9333ea; --s6: #db2777; --s7: #0891b2;
  --s8: #ca8a04;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e1116; --card: #171b22; --ink: #e8ecf2;
    --muted: #97a1b0; --rule: #2a303a; --grid: #222832; --shade: #1e2530;
    --good: #4ade80; --s1: #60a5fa; --s2: #94a3b8; --s3: #fbbf24;
    --s4: #34d399; --s5: #c084fc; --s6: #f472b6; --s7: #22d3ee;
    --s8: #fde047;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 72px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 0 0 4px; letter-spacing: -.005em; }
h3 { font-size: 14px; margin: 0 0 8px; font-weight: 600; }
p { margin: 0 0 12px; max-width: 78ch; }
.note { color: var(--muted); font-size: 13.5px; margin-bottom: 16px; }
.facts {
  color: var(--muted); display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13.5px;
  margin-bottom: 24px;
}
.facts b { color: var(--ink); font-weight: 600; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 12px;
  margin-bottom: 20px;
}
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; }
.tile .value { font-size: 25px; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.2; }
.tile .unit { font-size: 14px; font-weight: 500; color: var(--muted); }
.tile .name { font-size: 12.5px; color: var(--muted); }
.tile .beside { font-size: 12.5px; color: var(--muted); margin-top: 4px; }
.tile .gain { color: var(--good); font-weight: 600; }
section {
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 22px 24px;
  margin-bottom: 20px;
}
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 22px 28px; }
.small-multiples {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 18px 20px;
}
.scroll { overflow-x: auto; }
table.figures {
  border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin-bottom: 20px;
}
table.figures caption { text-align: left; font-weight: 600; font-size: 14px; padding-bottom: 6px; }
table.figures th, table.figures td {
  padding: 6px 12px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap;
}
table.figures th { font-weight: 500; color: var(--muted); font-size: 12.5px; }
table.figures th:first-child, table.figures td:first-child { text-align: left; padding-left: 0; }
table.figures .se { color: var(--muted); font-size: 12px; margin-left: 5px; }
table.figures .best { font-weight: 700; }
table.figures .null { color: var(--muted); }
.swatch {
  display: inline-block; width: 10px; height: 10px; border-radius: 3px; background: var(--c);
  margin-right: 8px;
}
svg.chart { width: 100%; height: auto; display: block; overflow: visible; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--muted); stroke-opacity: .6; }
svg .tick { fill: var(--muted); font-size: 11px; } svg .axis-label { fill: var(--muted); font-size: 11.5px; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .area { stroke: var(--card); stroke-width: .75; } svg .shade { fill: var(--shade); }
svg .reference { stroke: var(--ink); stroke-dasharray: 4 4; stroke-opacity: .55; }
.legend {
  display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 12.5px; color: var(--muted); margin: 2px 0 12px;
}
.legend span { display: inline-flex; align-items: center; gap: 7px; }
.legend i { width: 18px; border-top: 3px solid var(--c); border-radius: 2px; }
.legend i.dashed { border-top-style: dashed; }
.columns + .scroll, .small-multiples + .scroll { margin-top: 20px; }
.reward { max-width: 760px; margin-top: 10px; }
.film { padding-top: 18px; margin-top: 18px; border-top: 1px solid var(--rule); }
.film:first-of-type { border-top: 0; margin-top: 0; padding-top: 4px; }
.animation { margin-bottom: 14px; }
.animation .heads {
  display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; font-size: 12.5px; color: var(--muted);
  margin-bottom: 4px;
}
.animation .heads span { padding-left: 2px; }
img { image-rendering: pixelated; display: block; border-radius: 3px; }
.animation img { width: 100%; }
table.strip { border-collapse: separate; border-spacing: 4px; }
table.strip th {
  font-weight: 500; font-size: 12px; color: var(--muted); white-space: nowrap; padding: 0 2px;
}
table.strip th:first-child { text-align: right; padding-right: 8px; }
table.strip td { padding: 0; } table.strip img { width: 100px; height: auto; }
table.strip .seen { color: var(--muted); } table.strip .ahead { color: var(--s1); }
.none { color: var(--muted); font-style: italic; }
dl.reasons {
  display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; font-size: 13.5px;
}
dl.reasons dt { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
dl.reasons dd { margin: 0; color: var(--muted); }
footer { color: var(--muted); font-size: 12.5px; }
@media (max-width: 640px) { main { padding: 20px 12px; } section { padding: 16px; } }
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""
