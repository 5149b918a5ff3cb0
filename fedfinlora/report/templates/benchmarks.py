"""One benchmark in detail: figures, classes, confusion matrices and examples of answers."""

TEMPLATE = """
{% from "macros" import details, save_chart, scroll %}

{# A fedfinlora.report.details.Details. #}
{% macro benchmark(data) %}
{% set info = data.benchmark %}
<details class="benchmark" id="benchmark-{{ info.key }}">
<summary><b>{{ info.title }}</b> <code>{{ info.key }}</code> <span>{{ data.summary }}</span></summary>
{% if info.notes %}<p class="flaws"><b>About the data:</b> {{ info.notes }}</p>{% endif %}
{{ figures(data) }}
{% if data.support %}{{ classes(data) }}{% endif %}
{{ confusions(data.matrices) }}
{{ examples(data.examples) }}
</details>
{% endmacro %}

{# Every figure that a system has, by family. #}
{% macro figures(data) %}
{% call scroll("Figures of " ~ data.benchmark.title) %}
<table class="plain compact"><thead><tr><th scope="col">Figure</th>
{% for item in data.scored %}<th scope="col" class="number">{{ item.system.heading }}</th>{% endfor %}
</tr></thead>
{% for family, rows in data.families %}
<tbody><tr class="family"><th scope="rowgroup" colspan="{{ 1 + data.scored|length }}">{{ family }}</th></tr>
{% for title, cells in rows %}
<tr><th scope="row">{{ title }}</th>
{% for value, limits in cells %}
<td class="number">
{%- if value == DASH %}{{ DASH }}{% else %}<b>{{ value }}</b><small>{{ limits }}</small>{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
{% endfor %}
</table>
{% endcall %}
{% if data.tolerance %}
<p><small>Numbers are right within {{ "%g"|format(data.tolerance) }} of the target’s size.</small></p>
{% endif %}
{% endmacro %}

{# Recall, precision and F1 of each class, the F1 also as a bar. #}
{% macro classes(data) %}
<h4>By class</h4>
{% call scroll("Classes of " ~ data.benchmark.title) %}
<table class="plain compact classes"><thead>
<tr><th scope="col" rowspan="2">Class</th><th scope="col" rowspan="2" class="number">Rows</th>
{% for item in data.with_classes %}
<th scope="colgroup" colspan="3" class="start">{{ item.system.heading }}</th>
{% endfor %}
</tr><tr>
{% for item in data.with_classes %}
<th scope="col" class="start">F1</th><th scope="col" class="number">Precision</th>
<th scope="col" class="number">Recall</th>
{% endfor %}
</tr></thead><tbody>
{% for label in data.frequent_classes %}
<tr><th scope="row">{{ label }}</th><td class="number">{{ data.support[label]|count }}</td>
{% for item in data.with_classes %}
{% set means = item.class_of(label) %}
<td class="start bar-cell"><svg class="share" width="44" height="8" viewBox="0 0 44 8" aria-hidden="true">
<rect class="band" width="44" height="8"/>
<rect class="bar slot-0" width="{{ "%.1f"|format(44 * [[means.f1 or 0, 0]|max, 1]|min) }}" height="8"/>
</svg>{{ means.f1|fraction }}</td>
<td class="number">{{ means.precision|fraction }}</td><td class="number">{{ means.recall|fraction }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% set left = data.support|length - data.frequent_classes|length %}
{% if left %}
<p><small>{{ left|plural("rarer class", "rarer classes") }} are not shown here; metrics.json has all.</small></p>
{% endif %}
{% endmacro %}

{% macro confusions(matrices) %}
{% if matrices %}
<h4>Confusion</h4><p><small>Rows of each true class by the answer given; darker is a larger share of the class.
Blue is right, orange is wrong, grey is no class at all.</small></p>
<div class="matrices">{% for matrix in matrices %}{{ confusion(matrix) }}{% endfor %}</div>
{% endif %}
{% endmacro %}

{% macro confusion(matrix) %}
<figure><figcaption><b>{{ matrix.title }}</b> {{ save_chart(matrix.chart) }}</figcaption>
{% call scroll("Confusion matrix of " ~ matrix.title) %}
<table class="confusion"><thead><tr><th scope="col">true ↓ answer →</th>
{% for answer, edge in matrix.columns %}<th scope="col" class="{{ edge }}">{{ answer }}</th>{% endfor %}
<th scope="col" class="sum">rows</th></tr></thead><tbody>
{% for label, cells, total in matrix.rows %}
<tr><th scope="row">{{ label }}</th>
{% for cell in cells %}
<td class="{{ cell.css_class }}" title="{{ cell.title }}">{{ cell.number|count }}</td>
{% endfor %}
<td class="sum">{{ total|count }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
</figure>
{% endmacro %}

{% macro examples(answered) %}
{% if answered %}
<h4>Examples</h4><p><small>Prompts are not stored in run folders, only their hashes: find a row’s prompt by its id in
the data that the run was scored on.</small></p>
<div class="answered">
{% for title, summary, kinds in answered %}
{% call details(title, summary) %}
{% for kind in kinds %}
<h5><span aria-hidden="true">{{ kind.mark }}</span> {{ kind.name }}</h5>
<ol class="examples">
{% for row in kind.rows %}
<li><code>{{ row.id[:120] }}</code><dl>
{% for name, part in kind.parts_of(row) %}
<dt>{{ name }}</dt><dd>{% if part is string %}{{ part }}{% else %}{{ quoted(part) }}{% endif %}</dd>
{% endfor %}
</dl></li>
{% endfor %}
</ol>
{% endfor %}
{% endcall %}
{% endfor %}
</div>
{% endif %}
{% endmacro %}

{# A text of a row, its end folded away where it is long. #}
{% macro quoted(quote) %}
{% if not quote.line %}<i>empty</i>
{%- elif not quote.whole %}<q>{{ quote.line }}</q>
{%- else %}<details><summary><q>{{ quote.line }}</q></summary><pre>{{ quote.whole }}</pre>
{% if quote.left %} <i>… {{ quote.left|count }} more characters in the run folder</i>{% endif %}</details>
{%- endif %}
{% endmacro %}
"""
