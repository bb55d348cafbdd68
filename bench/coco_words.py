"""The words by which captions name the 80 things of COCO, and phrases that mean something else.

What `MEANS_OTHER` finds is struck out first. People are also named by what they do.
"""

from __future__ import annotations

from typing import Final

NAMES: Final = {
    "person": (
        "person|people|man|men|woman|women|boy|boys|girl|girls|child|children|kid|kids|baby|"
        "babies|toddler|toddlers|lady|ladies|guy|guys|gentleman|gentlemen|adult|adults|"
        "teenager|teenagers|teen|teens|youth|youths|youngster|youngsters|humans|male|males|"
        "female|females|crowd|crowds|family|families|friends|player|players|skier|skiers|"
        "snowboarder|snowboarders|skateboarder|skateboarders|surfer|surfers|biker|bikers|"
        "bicyclist|bicyclists|cyclist|cyclists|rider|riders|climber|climbers|hiker|hikers|"
        "swimmer|swimmers|runner|runners|jogger|joggers|dancer|dancers|performer|performers|"
        "musician|musicians|worker|workers|athlete|athletes|racer|racers|driver|drivers|"
        "spectator|spectators|pedestrian|pedestrians|bride|brides|groom|fisherman|fishermen|"
        "cowboy|cowboys|policeman|policemen|officer|officers|soldier|soldiers|infant|infants|"
        "mother|father|mom|dad|son|daughter|brother|brothers|sister|sisters|wakeboarder|"
        "motorcyclist|motorcyclists|boarder|boarders|kayaker|kayakers|singer|guitarist|"
        "student|students|dude|dudes|gymnast|wrestler|wrestlers|goalie|catcher|batter|"
        "pitcher|quarterback|cheerleader|cheerleaders|rollerblader|skater|skaters|individual|"
        "individuals"
    ),
    "bicycle": (
        "bicycle|bicycles|bike|bikes|biker|bikers|biking|bicyclist|bicyclists|cyclist|"
        "cyclists|bicycling|tricycle|bmx"
    ),
    "car": (
        "car|cars|automobile|automobiles|taxi|taxis|van|vans|suv|jeep|minivan|minivans|"
        "racecar|convertible|sedan"
    ),
    "motorcycle": (
        "motorcycle|motorcycles|motorbike|motorbikes|motocross|dirtbike|dirtbikes|dirt bike|"
        "dirt bikes|motor bike|motorcyclist|motorcyclists|motorcycling|moped|scooters|"
        "dirt biker|dirt bikers"
    ),
    "airplane": "airplane|airplanes|plane|planes|jet|jets|aircraft|biplane",
    "bus": "bus|buses|schoolbus",
    "train": "train|trains|subway|locomotive|trolley|tram",
    "truck": "truck|trucks|pickup|lorry|firetruck",
    "boat": (
        "boat|boats|canoe|canoes|kayak|kayaks|kayaker|kayakers|kayaking|canoeing|sailboat|"
        "sailboats|raft|rafts|rafting|ship|ships|ferry|speedboat|motorboat|yacht|rowboat|"
        "rowboats|dinghy|catamaran|gondola"
    ),
    "traffic light": "traffic light|traffic lights|stoplight|stop light|traffic signal",
    "fire hydrant": "fire hydrant|fire hydrants|hydrant|hydrants",
    "stop sign": "stop sign|stop signs",
    "parking meter": "parking meter|parking meters",
    "bench": "bench|benches|park bench",
    "bird": (
        "bird|birds|duck|ducks|goose|geese|seagull|seagulls|gull|gulls|pigeon|pigeons|swan|"
        "swans|eagle|owl|parrot|chicken|chickens|rooster|heron|pelican|hawk|flamingo|"
        "flamingos|penguin"
    ),
    "cat": "cat|cats|kitten|kittens|kitty",
    "dog": (
        "dog|dogs|puppy|puppies|pup|pups|doggy|greyhound|greyhounds|poodle|poodles|terrier|"
        "retriever|labrador|dalmatian|dalmation|bulldog|german shepherd|beagle|husky|huskies|"
        "dachshund|dachshunds|pug|rottweiler|spaniel|hound|hounds|mutt|canine|canines|"
        "chihuahua|chihuahuas|schnauzer|corgi|doberman|mastiff|lab|pitbull|sheepdog|whippet|"
        "dane|collie|collies"
    ),
    "horse": "horse|horses|pony|ponies|horseback|bronco|stallion|mare|foal",
    "sheep": "sheep|lamb|lambs",
    "cow": "cow|cows|cattle|bull|bulls|calf|calves|steer|ox|oxen",
    "elephant": "elephant|elephants",
    "bear": "bear|bears|polar bear",
    "zebra": "zebra|zebras",
    "giraffe": "giraffe|giraffes",
    "backpack": (
        "backpack|backpacks|rucksack|knapsack|back pack|backpacker|backpackers|backpacking"
    ),
    "umbrella": "umbrella|umbrellas|parasol|parasols",
    "handbag": "handbag|handbags|purse|purses|hand bag",
    "tie": "tie|necktie|neckties|bowtie|bow tie",
    "suitcase": "suitcase|suitcases|luggage|briefcase",
    "frisbee": "frisbee|frisbees|frisbe|frizbee",
    "skis": "ski|skis|skier|skiers|skiing|skied",
    "snowboard": (
        "snowboard|snowboards|snowboarder|snowboarders|snowboarding|snowboarded|snow board|"
        "snow boarder|snow boarding"
    ),
    "sports ball": (
        "ball|balls|basketball|basketballs|football|footballs|volleyball|volleyballs|"
        "baseball|baseballs|soccer ball|tennis ball|tennis balls|softball|soccerball"
    ),
    "kite": "kite|kites|kiteboarder|kiteboarding|kitesurfing|parasail",
    "baseball bat": "baseball bat|baseball bats|bat|bats|batter",
    "baseball glove": "baseball glove|baseball gloves|baseball mitt|mitt|catcher's mitt",
    "skateboard": (
        "skateboard|skateboards|skateboarder|skateboarders|skateboarding|skate board|"
        "skate boarder|skate boarding|longboard|skateboarded"
    ),
    "surfboard": (
        "surfboard|surfboards|surfer|surfers|surfing|surf board|surfs|bodyboard|boogie board|"
        "wakeboard"
    ),
    "tennis racket": "tennis racket|tennis racquet|racket|rackets|racquet|raquet|racquets",
    "bottle": "bottle|bottles",
    "wine glass": (
        "wine glass|wine glasses|wineglass|champagne glass|glass of wine|glasses of wine"
    ),
    "cup": "cup|cups|mug|mugs",
    "fork": "fork|forks",
    "knife": "knife|knives",
    "spoon": "spoon|spoons",
    "bowl": "bowl|bowls",
    "banana": "banana|bananas",
    "apple": "apple|apples",
    "sandwich": "sandwich|sandwiches|hamburger|burger",
    "orange": "oranges|an orange|orange slices",
    "broccoli": "broccoli",
    "carrot": "carrot|carrots",
    "hot dog": "hot dog|hot dogs|hotdog|hotdogs",
    "pizza": "pizza|pizzas",
    "donut": "donut|donuts|doughnut|doughnuts",
    "cake": "cake|cakes|cupcake|cupcakes",
    "chair": "chair|chairs|armchair|recliner|stool|stools",
    "couch": "couch|couches|sofa|sofas|loveseat|futon",
    "potted plant": "potted plant|potted plants|houseplant|flower pot|flowerpot",
    "bed": "bed|beds|bunk bed|mattress",
    "dining table": "table|tables|dining table",
    "toilet": "toilet|toilets",
    "tv": "tv|tvs|television|televisions",
    "laptop": "laptop|laptops|notebook computer",
    "mouse": "computer mouse|mouse",
    "remote": "remote|remotes|remote control",
    "keyboard": "keyboard|keyboards",
    "cell phone": (
        "cell phone|cell phones|cellphone|cellphones|cellular phone|mobile phone|phone|"
        "phones|telephone"
    ),
    "microwave": "microwave|microwaves",
    "oven": "oven|ovens|stove",
    "toaster": "toaster|toasters",
    "sink": "sink|sinks",
    "refrigerator": "refrigerator|refrigerators|fridge",
    "book": "book|books",
    "clock": "clock|clocks",
    "vase": "vase|vases",
    "scissors": "scissors|scissor",
    "teddy bear": "teddy bear|teddy bears|teddy|teddies|stuffed bear",
    "hair drier": "hair drier|hair dryer|hairdryer|blow dryer",
    "toothbrush": "toothbrush|toothbrushes",
}
"""By name, in the order of COCO: words and phrases, with `|` between them."""

_GAMES = "football|baseball|basketball|volleyball|softball"
_OF_GAMES = (
    "players?|teams?|games?|field|court|uniforms?|jerseys?|match|bats?|gloves?|mitt|cap|hat|hoop|"
    "helmet|stadium|pitcher|pants"
)
MEANS_OTHER: Final = {
    "dog": "hot dogs?",
    "bear": "teddy bears?|stuffed bear",
    "cup": "world cup",
    "sports ball": rf"(?:{_GAMES}) (?:{_OF_GAMES})",
}
"""Patterns."""
BIKES: Final = "bike|bikes|biker|bikers|biking"
"""These are motorcycles where a caption of the same photograph names one."""
