"""What both pages are made of: tables, folded parts, charts and the links that save them."""

TEMPLATE = """
{# A box that scrolls sideways where its content is wider than the page. #}
{% macro scroll(label) %}
<div class="scroll" role="region" aria-label="{{ label }}" tabindex="0">{{ caller() }}</div>
{% endmacro %}

{# A plain table with rows of its own; the columns not named in `words` hold numbers. #}
{% macro plain(label, head, words) %}
{% set rows = caller() %}
{% call scroll(label) %}
<table class="plain"><thead><tr>
{% for name in head %}<th scope="col"{% if name not in words %} class="number"{% endif %}>{{ name }}</th>{% endfor %}
</tr></thead><tbody>
{{ rows }}
</tbody></table>
{% endcall %}
{% endmacro %}

{# A fedfinlora.report.tables.Table. #}
{% macro table(data) %}
{% call plain(data.label, data.head, data.all_words) %}
{% for row in data.rows %}
<tr><th scope="row">{{ row[0] }}</th>
{% for value in row[1:] %}
{% set css_class = data.css_class(loop.index) %}
<td{% if css_class %} class="{{ css_class }}"{% endif %}>{{ value }}</td>
{% endfor %}
</tr>
{% endfor %}
{% endcall %}
{% endmacro %}

{# Names and values as code. #}
{% macro pairs(label, rows) %}
{% call plain(label, ["Name", "Value"], ["Name", "Value"]) %}
{% for name, value in rows %}
<tr><th scope="row"><code>{{ name }}</code></th><td><code>{{ value }}</code></td></tr>
{% endfor %}
{% endcall %}
{% endmacro %}

{% macro details(title, summary) %}
<details><summary><b>{{ title }}</b> <span>{{ summary }}</span></summary>{{ caller() }}</details>
{% endmacro %}

{% macro sentences(items) %}
<ul>{% for item in items %}<li>{{ item }}</li>{% endfor %}</ul>
{% endmacro %}

{# Figures in large type: (name, value, detail). #}
{% macro key_figures(figures) %}
<dl class="figures">
{% for name, value, detail in figures %}
<div><dt>{{ name }}</dt><dd>{{ value }}<small>{{ detail }}</small></dd></div>
{% endfor %}
</dl>
{% endmacro %}

{# A link that saves a file, which it carries in itself. #}
{% macro save(name, mime_type, content, shown, label) %}
<a class="save" download="{{ name }}" href="data:{{ mime_type }};charset=utf-8;base64,{{ content|base64 }}"
 aria-label="{{ label }}">{{ shown }}</a>
{%- endmacro %}

{% macro save_chart(chart) %}
{{ save(chart.name ~ ".svg", "image/svg+xml", chart|standalone, "SVG", "Save the figure " ~ chart.title ~ " as SVG") }}
{%- endmacro %}

{% macro figure(chart, can_save=true) %}
<figure><figcaption><b>{{ chart.title }}</b> <span>{{ chart.subtitle }}</span>
{% if can_save %}{{ save_chart(chart) }}{% endif %}</figcaption>
{{ chart|picture }}
{% if chart.legend %}
<ul class="legend">
{% for entry in chart.legend %}
<li><svg width="26" height="12" viewBox="0 0 26 12" aria-hidden="true">{{ entry.sample|safe }}</svg>
{{ entry.name }}</li>
{% endfor %}
</ul>
{% endif %}
</figure>
{% endmacro %}

{% macro figures(charts, can_save=true) %}
<div class="charts">{% for chart in charts %}{{ figure(chart, can_save) }}{% endfor %}</div>
{% endmacro %}

{# Mark, name and origin of each system. #}
{% macro legend(systems) %}
<ul class="legend">
{% for system in systems %}
<li><svg width="14" height="12" viewBox="0 0 14 12" aria-hidden="true">{{ marker(system.slot) }}</svg>
<b>{{ system.heading }}</b> <span>{{ system.detail }}</span></li>
{% endfor %}
</ul>
{% endmacro %}
"""
