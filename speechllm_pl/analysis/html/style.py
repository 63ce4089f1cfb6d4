"""The style sheet of the report: light, dark, narrow and printed."""

STYLE_SHEET = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf7; --raised: #ffffff; --ink: #1d1f24; --muted: #666a73; --rule: #dfdcd4;
  --ctc: #1f6fb8; --llm: #c4500c; --other: #2b8a57;
  --replaced: #fff0c9; --out: #a3262b; --in: #1c6e45;
  --text: "Avenir Next", Avenir, "Segoe UI", "Source Sans 3", Roboto, "Noto Sans", system-ui, sans-serif;
  --display: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", "Source Serif 4", Georgia, serif;
  --code: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171b; --raised: #1d2026; --ink: #e9e7e1; --muted: #9ea3ad; --rule: #343841;
    --ctc: #6cb1f2; --llm: #f59a5b; --other: #66cf97;
    --replaced: #4d3f14; --out: #ff9196; --in: #7fdcab;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: clamp(1.25rem, 4vw, 4rem) clamp(1rem, 4vw, 2.5rem) 5rem; max-width: 70rem;
  background: var(--paper); color: var(--ink); font: 400 1rem/1.6 var(--text);
  font-variant-numeric: lining-nums tabular-nums;
}
h1, h2, h3 { font-family: var(--display); font-weight: 500; line-height: 1.15; text-wrap: balance; }
h1 { font-size: clamp(2.3rem, 6vw, 3.6rem); margin: 0 0 1rem; letter-spacing: -0.015em; }
h1 em { overflow-wrap: anywhere; }
h2 { font-size: 1.75rem; margin: 0 0 1.1rem; }
h3 { font-size: 1.2rem; margin: 2rem 0 0.4rem; }
p { max-width: 44rem; margin: 0 0 1rem; text-wrap: pretty; }
.kicker { color: var(--muted); font-size: 0.8rem; letter-spacing: 0.09em; text-transform: uppercase;
  margin: 0 0 0.6rem; }
.lede { font-size: 1.125rem; color: var(--muted); }
section { margin-top: 2.75rem; padding-top: 2.25rem; border-top: 1px solid var(--rule); }
a { color: inherit; text-decoration-color: var(--rule); text-underline-offset: 0.25em; }
a:hover { text-decoration-color: currentColor; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.4rem; font-size: 0.92rem; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1px; margin: 2.2rem 0 1.6rem;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 0.6rem; overflow: hidden; }
.tile { background: var(--raised); padding: 1.1rem 1.25rem 1.2rem; border-top: 3px solid var(--rule); }
.tile.ctc { border-top-color: var(--ctc); }
.tile.llm { border-top-color: var(--llm); }
.tile dt { color: var(--muted); font-size: 0.87rem; }
.tile dd { margin: 0; }
.tile .value { font: 500 2.5rem/1.25 var(--display); letter-spacing: -0.02em; }
.tile .value small { font-size: 1.1rem; color: var(--muted); letter-spacing: 0; }
.tile .note { color: var(--muted); font-size: 0.82rem; line-height: 1.4; }

.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.8rem 2.5rem;
  align-items: start; }
.pair > * { min-width: 0; }
@media (min-width: 62rem) { .results { grid-template-columns: minmax(0, 1.75fr) minmax(0, 1fr); } }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; font-family: var(--text); }
figure svg * { stroke-linejoin: round; }
figcaption, caption, .notes, .legend { color: var(--muted); font-size: 0.87rem; line-height: 1.5; }
figcaption { margin-top: 0.35rem; }
.notes { margin: 1.2rem 0 0; padding-left: 1.1rem; max-width: 44rem; }
.scroll { overflow-x: auto; }
.wide svg { min-width: 36rem; }

table { border-collapse: collapse; width: 100%; font-size: 0.93rem; }
caption { text-align: left; padding-bottom: 0.7rem; }
th, td { padding: 0.36rem 0.6rem; text-align: left; vertical-align: baseline; font-weight: 400; }
thead th { color: var(--muted); font-size: 0.82rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
tbody tr + tr > * { border-top: 1px solid color-mix(in srgb, var(--rule) 55%, transparent); }
.scores { font-size: 0.88rem; }
.scores th, .scores td { padding-inline: 0.4rem; }
.scores td, .scores thead th:not(:first-child) { text-align: right; white-space: nowrap; }
.scores thead tr:first-child th { text-align: left; padding-left: 1rem; font-size: 0.9rem; border-bottom: 0; }
.scores th.ctc[colspan], .samples th.ctc[scope=row] { color: var(--ctc); font-weight: 600; }
.scores th.llm[colspan], .samples th.llm[scope=row] { color: var(--llm); font-weight: 600; }
.scores .first { padding-left: 1rem; }
.scores .interval { color: var(--muted); font-size: 0.87em; }
.scores .average > * { border-top: 2px solid var(--rule); }
.scores .average th { white-space: normal; line-height: 1.3; min-width: 7.5rem; }

.quiet { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.legend mark, .legend del, .legend ins { margin: 0 0.15rem; }
.samples th[scope=row] { width: 4.5rem; font-size: 0.85rem; white-space: nowrap; }
.samples th[scope=row]:not([class]) { color: var(--muted); }
.samples td[lang] { font-size: 1.02rem; overflow-wrap: anywhere; }
.samples .count, .samples thead th:last-child { text-align: right; width: 4.5rem; color: var(--muted); }
.samples tbody tr > * { border-top: 0; padding-block: 0.2rem; }
.samples th[scope=rowgroup] { padding-top: 1.1rem; font: 0.8rem var(--code); color: var(--muted);
  border-bottom: 1px solid var(--rule); padding-bottom: 0.35rem; }
.samples th[scope=rowgroup] span { float: right; text-transform: uppercase; letter-spacing: 0.06em; }
.samples tbody tr:nth-child(2) > * { padding-top: 0.5rem; }
mark { background: var(--replaced); color: inherit; border-radius: 0.2rem; padding: 0.05em 0.2em;
  border-bottom: 2px solid var(--llm); }
del { color: var(--out); text-decoration-thickness: 1.5px; }
ins { color: var(--in); text-decoration: underline double; text-underline-offset: 0.2em; }
.flag { color: var(--out); font-size: 0.8rem; }

.missing { padding: 0.7rem 1rem; border-left: 3px solid var(--llm); background: var(--raised); max-width: 44rem; }
.commands { padding-left: 1.3rem; margin: 0; }
.commands h3 { margin: 1.1rem 0 0.4rem; font-size: 1.05rem; }
pre { margin: 0; padding: 0.8rem 1rem; background: var(--raised); border: 1px solid var(--rule); border-radius: 0.4rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: 0.85rem/1.55 var(--code); }
details { margin-top: 1.8rem; }
summary { cursor: pointer; margin-bottom: 0.6rem; }
.environment { width: auto; }
.environment td { font: 0.85rem var(--code); padding-left: 1.4rem; }

.findings { max-width: 46rem; margin: 0; padding-left: 1.1rem; }
.findings li { margin-bottom: 0.35rem; }
.findings li::marker { color: var(--out); }
.clean { padding: 0.7rem 1rem; border-left: 3px solid var(--in); background: var(--raised); max-width: 44rem; }
.figures td, .figures thead th:not(.name) { text-align: right; white-space: nowrap; }
.figures td.words { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.figures thead th.words { text-align: left; }
.figures .whole > * { border-top: 1px solid var(--rule); color: var(--muted); }
.alphabet { display: flex; flex-wrap: wrap; gap: 0.25rem; margin: 0.3rem 0 0.8rem; padding: 0; list-style: none; }
.alphabet li { padding: 0.1rem 0.5rem; border: 1px solid var(--rule); border-radius: 0.3rem;
  background: var(--raised); }
.alphabet small { color: var(--muted); font-size: 0.74rem; margin-left: 0.3rem; }
.alphabet li.strange { background: var(--replaced); border-color: var(--llm); }
.figures + details, .scroll + details { margin: 0.6rem 0 1.6rem; }
.suspects td { vertical-align: top; }
.suspects td:first-child { width: 17rem; }
.suspects audio { display: block; width: 16rem; height: 2.2rem; }
.suspects .said { font-size: 1.02rem; overflow-wrap: anywhere; margin: 0 0 0.15rem; max-width: none; }
.suspects .why { color: var(--out); font-size: 0.87rem; margin: 0; max-width: none; }
.suspects .where { color: var(--muted); font: 0.76rem/1.5 var(--code); overflow-wrap: anywhere; margin: 0;
  max-width: none; }

@media (max-width: 36rem) {
  .suspects td { display: block; }
  th, td { padding-inline: 0.4rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile { padding: 0.8rem 0.9rem; }
  .tile .value { font-size: 1.9rem; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; --raised: #fff; --ink: #000; --muted: #444; --rule: #bbb;
    --ctc: #1f6fb8; --llm: #b0480b; --other: #2b8a57; --replaced: #fff0c9; --out: #a3262b; --in: #1c6e45; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; }
  figure, tbody, pre, .tiles { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  mark { print-color-adjust: exact; }
}
"""
