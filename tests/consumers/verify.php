<?php
// As verify.py, for the PHP snippets.
$page = file_get_contents(__DIR__ . "/../../docs/webhook.md");
preg_match_all('/```php\n(.*?)```/s', $page, $found);
$snippets = [];
foreach ($found[1] as $at => $code) {
    // A namespace of its own for each: all of them are called verify.
    eval("namespace Snippet$at; $code");
    $snippets[] = "Snippet$at\\verify";
}

while (($line = fgets(STDIN)) !== false) {
    $case = json_decode($line, true);
    $said = [];
    foreach ($snippets as $verify) {
        $said[] = $verify($case["secret"], $case["headers"], $case["body"]);
    }
    echo json_encode($said), "\n";
}
